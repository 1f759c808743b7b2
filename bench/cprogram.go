//go:build linux

package main

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/nftables/expr"
)

// contenderSource is a program that uses the C interface.
//
//go:embed cprogram/contender.c
var contenderSource []byte

//go:embed cprogram/queue.c
var queueSource []byte

// capiPackage is the package of the C interface.
const capiPackage = "github.com/opendivert/divert/capi"

// built holds the folder of a C program and its dependencies, built once, or the error.
type built struct {
	sync.Mutex
	dir string
	err error
}

// The program that uses the C interface, with the library, and the one that does not.
var cProgram, queueProgram built

// in returns the folder, after building on the first call.
func (b *built) in(build func() (string, error)) (string, error) {
	b.Lock()
	defer b.Unlock()
	if b.dir == "" && b.err == nil {
		b.dir, b.err = build()
	}
	return b.dir, b.err
}

// remove removes the built files.
func (b *built) remove() {
	b.Lock()
	defer b.Unlock()
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
		b.dir = ""
	}
}

// throughC returns how to start the program with batches of a size, and threads on its handle.
func throughC(batch, threads int) func(traffic) (*exec.Cmd, error) {
	return func(t traffic) (*exec.Cmd, error) {
		dir, err := cProgram.in(buildCProgram)
		if err != nil {
			return nil, err
		}
		return exec.Command(filepath.Join(dir, "contender"), t.way(), fmt.Sprint(batch), fmt.Sprint(threads)), nil
	}
}

// throughQueue returns how to start the program without the library.
func throughQueue(traffic) (*exec.Cmd, error) {
	dir, err := queueProgram.in(buildQueueProgram)
	if err != nil {
		return nil, err
	}
	return exec.Command(filepath.Join(dir, "queue"), fmt.Sprint(plainQueue)), nil
}

// pastTheStack returns how to start that program so that it redirects packets to another address through a packet
// socket.
func pastTheStack(t traffic) (*exec.Cmd, error) {
	cmd, err := throughQueue(t)
	if err == nil {
		cmd.Args = append(cmd.Args, "eth0", realAddr.String(), aimAddr.String()) // the interface name given by internal/lab
	}
	return cmd, err
}

// leadBothWays installs the rules that lead packets for that program, and the answers, to its queue.
func leadBothWays(t traffic) (*ruleset, error) {
	answers, err := installNamed(answersTable, traffic{Inbound: true}.chain(), append(atAddress(sourceOffset, realAddr), toQueue()))
	if err != nil {
		return nil, err
	}
	r, err := install(t.chain(), append(atAddress(destinationOffset, aimAddr), toQueue()))
	if err != nil {
		return nil, errors.Join(err, answers.remove())
	}
	r.also = answers
	return r, nil
}

// leadToQueue installs the rule that leads a contender's packets to its queue.
func leadToQueue(t traffic) (*ruleset, error) { return install(t.chain(), []expr.Any{toQueue()}) }

// removeCPrograms removes all built programs.
func removeCPrograms() {
	cProgram.remove()
	queueProgram.remove()
}

// buildQueueProgram builds the program without the library in a new folder. It needs a C compiler and the kernel's
// headers.
func buildQueueProgram() (dir string, err error) {
	if _, err := exec.LookPath("gcc"); err != nil {
		return "", errUnavailable{fmt.Sprintf("it is built with gcc: %v", err)}
	}
	if dir, err = os.MkdirTemp("", "divert-bench"); err != nil {
		return "", err
	}
	source := filepath.Join(dir, "queue.c")
	if err = os.WriteFile(source, queueSource, 0o600); err == nil {
		var out []byte
		out, err = exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-o", filepath.Join(dir, "queue"), source, "-lpthread").CombinedOutput()
		if err != nil {
			err = fmt.Errorf("build the queue loop in C: %w\n%s", err, out)
		}
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", err
	}
	return dir, nil
}

// buildCProgram builds library and program in a new folder. It needs Go, a C compiler and the sources.
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
