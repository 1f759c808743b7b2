//go:build linux

package main_test

import "testing"

// TestInterface compiles and runs testdata/interface.c with each compiler: the header must serve them all.
func TestInterface(t *testing.T) {
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) { run(t, compile(t, "interface.c", d)) })
	}
}

// TestOwnCalls: a program may bring calls of Windows itself, and the library uses them.
func TestOwnCalls(t *testing.T) {
	for _, d := range []dialect{gccStrict, cxxModern} {
		t.Run(d.name, func(t *testing.T) { run(t, compile(t, "own.c", d)) })
	}
}
