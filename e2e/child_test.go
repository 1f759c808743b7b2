//go:build linux

package e2e_test

import "os"

// childEnv names the job that this test binary does as a child process of a test.
const childEnv = "DIVERT_TEST_CHILD"

// children are the jobs.
var children = map[string]func() error{}

// runChild does the job that the environment names, and ends.
func runChild() {
	name := os.Getenv(childEnv)
	if name == "" {
		return
	}
	if err := children[name](); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Exit(0)
}
