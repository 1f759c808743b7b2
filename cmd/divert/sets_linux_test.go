package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// says waits until the standard error of a run has a text a number of times.
func (p *running) says(t *testing.T, text string, times int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); strings.Count(p.errout.String(), text) < times; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q did not appear %d times:\n%s", text, times, p.errout)
		}
	}
}

// TestSetFileChanges: a changed file takes effect, by itself and on SIGHUP; a wrong file leaves the set unchanged.
func TestSetFileChanges(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		pair, echo := hosts(t)
		path := filepath.Join(t.TempDir(), "blocked.txt")
		write := func(text string) {
			t.Helper()
			if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}
		passes := func(want int) {
			t.Helper()
			wait := 100 * time.Millisecond
			if want > 0 {
				wait = 5 * time.Second
			}
			if n := exchange(t, pair.A, echo, 3, wait); n != want {
				t.Errorf("%d datagrams came back, want %d", n, want)
			}
		}
		write("# nothing yet\n")
		p := start(t, pair.A, "drop", "--engine", engine, "--json", "udp and remoteAddr in @blocked="+path)
		passes(3)
		const again = `"event":"set"`
		write(fmt.Sprintf("%v # the peer\n", echo.Addr()))
		p.says(t, again, 1)
		passes(0)
		write("nonsense\n")
		p.says(t, "blocked.txt:1: ", 1)
		passes(0)
		write("# nothing again\n")
		p.says(t, again, 2)
		passes(3)
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.says(t, again, 3)
		passes(3)
		if _, status := p.end(t, syscall.SIGTERM); status != exitOK {
			t.Errorf("status %d", status)
		}
		checkSummary(t, p.errout.String(), summary{Matched: 6, Dropped: 6})
	})
}
