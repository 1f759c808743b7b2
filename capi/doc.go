// Command capi is not a command but libwindivert: the C interface of Divert, with the names, layouts and behaviour of
// WinDivert 2.2 (specification: api.md). Build it as a shared library:
//
//	go build -buildmode=c-shared -o libwindivert.so ./capi
//
// windivert.h is its interface and windivert.7 its manual page. C files set the thread's error number in every function;
// Go functions with the prefix divert do the work, through packages divert, filter and packet.
package main

import (
	"fmt"
	"os"
)

// main exists for ordinary builds of this package; a shared library never calls it.
func main() {
	fmt.Fprintln(os.Stderr, "this is a library: build it with -buildmode=c-shared")
	os.Exit(1)
}
