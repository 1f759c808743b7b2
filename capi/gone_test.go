//go:build linux

package main_test

import (
	"bufio"
	"io"
	"os/exec"
	"testing"

	"github.com/google/nftables"
)

// TestRulesGone runs testdata/gone.c: requests and calls get the same error after another program has flushed the rules.
func TestRulesGone(t *testing.T) {
	h := host(t)
	cmd := exec.Command(compile(t, "gone.c", gccModern))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if line == "ready\n" {
		err = h.Do(func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			c.FlushRuleset()
			return c.Flush()
		})
	}
	if err != nil || line != "ready\n" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("the program says %q; %v", line, err)
	}
	rest, _ := io.ReadAll(lines)
	report(t, rest, cmd.Wait())
}
