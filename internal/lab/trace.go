//go:build linux

package lab

import (
	"fmt"
	"os"
	"sync"
)

// traceOn reads the variable once, for the whole process.
var traceOn = sync.OnceValue(func() bool { return os.Getenv("DIVERT_LAB_TRACE") == "1" })

// tracef prints a step on standard error if DIVERT_LAB_TRACE=1.
func tracef(format string, args ...any) {
	if traceOn() {
		fmt.Fprintf(os.Stderr, "lab: "+format+"\n", args...)
	}
}
