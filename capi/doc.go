// Command capi is no command but libwindivert: the C interface of Divert, with the names, layouts and
// behaviour of WinDivert 2.2 (specification: api.md). Build it as a shared library:
//
//	go build -buildmode=c-shared -o libwindivert.so ./capi
//
// windivert.h is its interface and windivert.7 its manual page. C files give every function its thread's error
// number; Go functions with the prefix divert do the work, through packages divert, filter and
// packet.
package main

import (
	"fmt"
	"os"
)

// main is what an ordinary build of this package gets; a shared library never calls it.
func main() {
	fmt.Fprintln(os.Stderr, "this is a library: build it with -buildmode=c-shared")
	os.Exit(1)
}
