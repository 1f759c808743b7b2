//go:build linux

package lab

import (
	"fmt"
	"os"
)

// Main is for TestMain: it runs the tests where labs can be built, rootless if need be, checks that they leave nothing
// behind in the process, and ends the process.
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
// Where labs cannot be built the tests still run; those that need a lab skip with the reason.
func Main(m interface{ Run() int }) {
	if err := Rootless(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	before := TakeSnapshot()
	code := m.Run()
	if leaks := before.Leaks(); len(leaks) > 0 && code == 0 {
		fmt.Fprintln(os.Stderr, "lab: the tests left behind:")
		for _, l := range leaks {
			fmt.Fprintln(os.Stderr, " ", l)
		}
		code = 1
	}
	os.Exit(code)
}
