//go:build linux

package main_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/lab"
)

// sanitized is a compiler whose programs end at the first access to memory that is not theirs.
var sanitized = dialect{"sanitized", "gcc", []string{"-std=gnu17", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}}

// needSanitizers skips where the compiler has none.
func needSanitizers(t *testing.T) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "none.c")
	if err := os.WriteFile(source, []byte("int main(void) { return 0; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "none")
	out, err := exec.Command(sanitized.compiler, append(sanitized.options, "-o", program, source)...).CombinedOutput()
	if err == nil {
		out, err = exec.Command(program).CombinedOutput()
	}
	if err != nil {
		t.Skipf("no AddressSanitizer: %v: %s", err, out)
	}
}

// checkers run a program and report its misuse of memory.
var checkers = []struct {
	name    string
	dialect dialect
	need    func(t *testing.T)
	command func(t *testing.T, program string, args ...string) *exec.Cmd
}{
	{"sanitizers", sanitized, needSanitizers, func(_ *testing.T, program string, args ...string) *exec.Cmd {
		return exec.Command(program, args...)
	}},
	{"valgrind", gccModern, needValgrind, underValgrind},
}

// underValgrind returns a command that runs a program under valgrind, whose errors fail the test when it ends.
func underValgrind(t *testing.T, program string, args ...string) *exec.Cmd {
	log := filepath.Join(t.TempDir(), "log")
	t.Cleanup(func() {
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range valgrindError.FindAllSubmatchIndex(b, -1) {
			if name := string(b[found[2]:found[3]]); !ofGo(name, string(b[found[4]:found[5]])) {
				t.Errorf("in %s:\n%s", name, b[max(0, found[0]-200):min(len(b), found[1]+500)])
			}
		}
	})
	// A goroutine's stack may be near the old one. Valgrind then takes the switch for a growth of the stack, and regards
	// the memory in between, Go's heap, as uninitialised. So reports about data that Go copies from there into the
	// program's memory mean nothing.
	c := exec.Command("valgrind", append([]string{"--quiet", "--error-limit=no", "--undef-value-errors=no", "--fair-sched=try", "--log-file=" + log, program}, args...)...)
	// Valgrind 3.19 tells programs that every processor has this instruction, and stops them at it where the processor has not.
	c.Env = append(os.Environ(), "GODEBUG=cpu.rdtscp=off")
	return c
}

// ofGo reports whether a function, at a place, is Go's, or between Go and C: valgrind does not know Go's stacks and heap.
func ofGo(name, place string) bool {
	return strings.Contains(place, ".go:") || strings.Contains(place, ".s:") || strings.HasPrefix(name, "_cgo") || strings.Contains(name, ".")
}

// valgrindError finds the functions with errors, and their places.
var valgrindError = regexp.MustCompile(`(?m)^==\d+==    at 0x[0-9A-F]+: (\S+) \((.*)\)$`)

// needValgrind skips without valgrind, and in short mode: it is slow.
func needValgrind(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("valgrind takes long")
	}
	if _, err := exec.LookPath("valgrind"); errors.Is(err, exec.ErrNotFound) {
		t.Skipf("no valgrind: %v", err)
	}
}

// TestMemory runs the test programs that end by themselves, and checks their memory to the end.
func TestMemory(t *testing.T) {
	for _, c := range checkers {
		t.Run(c.name, func(t *testing.T) {
			c.need(t)
			for _, row := range []struct{ source, argument string }{
				{"interface.c", ""}, {"live.c", ""}, {"descriptor.c", ""}, {"events.c", "reflect"},
			} {
				t.Run(row.source, func(t *testing.T) {
					if testing.Short() && row.source != "interface.c" {
						t.Skip("the others take long")
					}
					if c.name == "valgrind" && row.source == "descriptor.c" {
						t.Skip("valgrind runs one thread at a time, and may let the library's wait for longer than the program does")
					}
					runAt(t, host(t), c.command(t, compile(t, row.source, c.dialect), strings.Fields(row.argument)...))
				})
			}
		})
	}
}

// TestMemoryOfTheExample runs the example that changes packets on some packets, and interrupts it.
func TestMemoryOfTheExample(t *testing.T) {
	for _, c := range checkers {
		t.Run(c.name, func(t *testing.T) {
			c.need(t)
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			conn, filter := receiver(t, pair)
			program := compile(t, example("rewrite.c"), c.dialect)
			replaced(t, pair, conn, "a cup of coffee, please", "a cup of black tea, please", c.command(t, program, filter, "coffee", "black tea"))
		})
	}
}
