//go:build linux

package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(runner{m}) }

// runner runs the tests and removes the files that they have built.
type runner struct{ *testing.M }

func (r runner) Run() int {
	code := r.M.Run()
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	return code
}

// built is shared by the tests: the library and the compiled programs.
var built struct {
	sync.Mutex
	dir      string
	err      error
	programs map[string]string
}

// dialect is a compiler with the options of a language standard.
type dialect struct {
	name, compiler string
	options        []string
}

// The compilers that must accept everything without a warning.
var (
	gccStrict  = dialect{"C99", "gcc", []string{"-std=c99", "-pedantic", "-D_DEFAULT_SOURCE"}}
	gccModern  = dialect{"GNU C17", "gcc", []string{"-std=gnu17"}}
	cxxAncient = dialect{"C++98", "g++", []string{"-std=gnu++98", "-x", "c++"}}
	cxxModern  = dialect{"C++17", "g++", []string{"-std=c++17", "-pedantic", "-x", "c++"}}
)

var dialects = []dialect{gccStrict, gccModern, cxxAncient, cxxModern}

// library builds the shared library, once, and returns its folder. It skips without a C compiler.
func library(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skipf("no C compiler: %v", err)
	}
	built.Lock()
	defer built.Unlock()
	if built.dir == "" && built.err == nil {
		built.err = buildLibrary()
	}
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

func buildLibrary() (err error) {
	if built.dir, err = os.MkdirTemp("", "libwindivert"); err != nil {
		return err
	}
	built.programs = make(map[string]string)
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-o", filepath.Join(built.dir, "libwindivert.so"), ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the library: %v\n%s", err, out)
	}
	return nil
}

// compile compiles a program of testdata, or of another folder, and returns its path.
func compile(t testing.TB, source string, d dialect) string {
	t.Helper()
	dir := library(t)
	if _, err := exec.LookPath(d.compiler); err != nil {
		t.Skipf("no compiler: %v", err)
	}
	if !strings.ContainsRune(source, filepath.Separator) {
		source = filepath.Join("testdata", source)
	}
	built.Lock()
	defer built.Unlock()
	key := d.name + " " + source
	if program, ok := built.programs[key]; ok {
		return program
	}
	program := filepath.Join(dir, fmt.Sprintf("program%d", len(built.programs)))
	args := append([]string{"-g", "-O1", "-Wall", "-Wextra", "-Werror", "-I.", "-o", program}, d.options...)
	args = append(args, source, "-x", "none", "-L"+dir, "-Wl,-rpath,"+dir, "-Wl,--as-needed")
	if slices.Contains(d.options, "-Iwin32") {
		args = append(args, "-lwindivert-win32") // its calls override those of libwindivert
	}
	args = append(args, "-lwindivert", "-lpthread", "-ldl")
	if out, err := exec.Command(d.compiler, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s as %s: %v\n%s", source, d.name, err, out)
	}
	built.programs[key] = program
	return program
}

// run runs a program in the test's own namespace, and fails the test if it fails.
func run(t *testing.T, program string, args ...string) {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	report(t, out, err)
}

// runAt runs a program in a host's namespace.
func runAt(t *testing.T, h *lab.Host, cmd *exec.Cmd) {
	t.Helper()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	err := h.Exec(cmd)
	report(t, []byte(out.String()), err)
}

func report(t *testing.T, out []byte, err error) {
	t.Helper()
	if len(out) > 0 {
		t.Logf("%s", out)
	}
	if err != nil {
		t.Errorf("the program ended with %v", err)
	}
}
