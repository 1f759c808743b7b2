//go:build linux

package main_test

import (
	"os/exec"
	"testing"
)

// TestHeader compiles testdata/header.c, which includes the header beside those of the system, by each standard, with
// more warnings than the other programs.
func TestHeader(t *testing.T) {
	for compiler, standards := range map[string][]string{
		"gcc": {"gnu89", "c99", "c11", "c17"}, "g++": {"c++98", "c++11", "c++14", "c++17", "c++20"},
	} {
		language := map[string]string{"gcc": "c", "g++": "c++"}[compiler]
		for _, standard := range standards {
			t.Run(standard, func(t *testing.T) {
				if _, err := exec.LookPath(compiler); err != nil {
					t.Skipf("no compiler: %v", err)
				}
				must(t, compiler, "-std="+standard, "-D_DEFAULT_SOURCE", "-pedantic", "-Wall", "-Wextra", "-Wconversion",
					"-Werror", "-fsyntax-only", "-I.", "-x", language, "testdata/header.c")
			})
		}
	}
}

// TestInterface compiles and runs testdata/interface.c with each compiler: the header must work with all.
func TestInterface(t *testing.T) {
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) { run(t, compile(t, "interface.c", d)) })
	}
}

// TestOwnCalls: a program may define Windows calls itself, and the library uses them.
func TestOwnCalls(t *testing.T) {
	for _, d := range []dialect{gccStrict, cxxModern} {
		t.Run(d.name, func(t *testing.T) { run(t, compile(t, "own.c", d)) })
	}
}
