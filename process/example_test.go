package process_test

import (
	"fmt"
	"os"

	"github.com/opendivert/divert/process"
)

// A program that prints many events keeps one Cache for all of them.
func ExampleCache() {
	var processes process.Cache
	p, err := processes.Lookup(uint32(os.Getpid()))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.ID == uint32(os.Getpid()), p.Executable != "")
}
