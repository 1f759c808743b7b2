//go:build linux

package main

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// contenderSource is a program that uses the C interface.
//
//go:embed cprogram/contender.c
var contenderSource []byte

// capiPackage has the C interface.
const capiPackage = "github.com/opendivert/divert/capi"

// cProgram is where the program and the library were built, once, or why they could not be.
var cProgram struct {
	sync.Mutex
	dir string
	err error
}

// throughC returns how to start the program with batches of a size.
func throughC(batch int) func(traffic) (*exec.Cmd, error) {
	return func(t traffic) (*exec.Cmd, error) {
		cProgram.Lock()
		defer cProgram.Unlock()
		if cProgram.dir == "" && cProgram.err == nil {
			cProgram.dir, cProgram.err = buildCProgram()
		}
		if cProgram.err != nil {
			return nil, cProgram.err
		}
		return exec.Command(filepath.Join(cProgram.dir, "contender"), t.way(), fmt.Sprint(batch)), nil
	}
}

// removeCProgram removes what throughC has built.
func removeCProgram() {
	cProgram.Lock()
	defer cProgram.Unlock()
	if cProgram.dir != "" {
		_ = os.RemoveAll(cProgram.dir)
		cProgram.dir = ""
	}
}

// buildCProgram builds library and program in a folder of their own. It needs Go, a C compiler and the sources.
func buildCProgram() (dir string, err error) {
	for _, tool := range []string{"go", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", errUnavailable{fmt.Sprintf("the C interface is built with %s: %v", tool, err)}
		}
	}
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", capiPackage).Output()
	if err != nil {
		return "", errUnavailable{"the C interface is built from the sources: run the benchmark in a clone"}
	}
	header := strings.TrimSpace(string(out))
	if dir, err = os.MkdirTemp("", "divert-bench"); err != nil {
		return "", err
	}
	source := filepath.Join(dir, "contender.c")
	steps := []*exec.Cmd{
		exec.Command("go", "build", "-buildmode=c-shared", "-o", filepath.Join(dir, "libwindivert.so"), capiPackage),
		exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-I"+header, "-o", filepath.Join(dir, "contender"), source,
			"-L"+dir, "-Wl,-rpath,"+dir, "-lwindivert", "-lpthread"),
	}
	err = os.WriteFile(source, contenderSource, 0o600)
	for _, step := range steps {
		if err != nil {
			break
		}
		step.Env = append(os.Environ(), "CGO_ENABLED=1")
		var out []byte
		if out, err = step.CombinedOutput(); err != nil {
			err = fmt.Errorf("build the program that uses the C interface: %w\n%s", err, out)
		}
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", err
	}
	return dir, nil
}
