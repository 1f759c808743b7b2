//go:build linux

package e2e_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"testing"

	"github.com/opendivert/divert/internal/lab"
)

// childEnv names the job that this test binary runs as a child process of a test.
const childEnv = "DIVERT_TEST_CHILD"

// children are the jobs.
var children = map[string]func() error{}

// runChild runs the job named in the environment, and ends.
func runChild() {
	name := os.Getenv(childEnv)
	if name == "" {
		return
	}
	if err := children[name](); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// talkingChild is a child process that starts with a line of output and ends when its standard input closes.
type talkingChild struct {
	cmd   *exec.Cmd
	in    io.Closer
	lines *bufio.Reader
}

// startTalking starts this test binary in a host's namespace with an environment that names a job, and waits for its
// first line.
func startTalking(t testing.TB, h *lab.Host, env ...string) *talkingChild {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); in.Close(); cmd.Wait() })
	c := &talkingChild{cmd, in, bufio.NewReader(out)}
	if _, err := c.lines.ReadString('\n'); err != nil {
		t.Fatalf("the child printed nothing: %v", err)
	}
	return c
}
