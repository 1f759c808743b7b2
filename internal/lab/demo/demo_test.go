//go:build linux

package demo

import (
	"bytes"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) {
	if done, err := runChild(); done {
		if err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	lab.Main(m)
}

// TestRun expects every check of the demonstration to hold, and its output to report each.
func TestRun(t *testing.T) {
	lab.Need(t)
	lab.CheckLeaks(t)
	for _, verbose := range []bool{false, true} {
		var out bytes.Buffer
		if err := Run(t.Context(), Options{Out: &out, Verbose: verbose}); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		for _, want := range []string{
			"host A", "10.77.0.1, fd77::1", "decided by:", "udp.DstPort == 53", "hello over IPv6",
			"GET / HTTP/1.1", "quarter past twelve", "colour=tan", "Gb/s through the program", "kill -9", "All ",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("the output does not tell of %q:\n%s", want, &out)
			}
		}
		if got := regexp.MustCompile(`(?m)^  ok   `).FindAllString(out.String(), -1); len(got) < 30 {
			t.Errorf("%d checks, want 30 at least:\n%s", len(got), &out)
		}
		if verbose != strings.Contains(out.String(), "counters:") {
			t.Errorf("verbose %v:\n%s", verbose, &out)
		}
	}
}

// TestFailedCheck: a claim that does not hold is not printed as true.
func TestFailedCheck(t *testing.T) {
	var out bytes.Buffer
	r := report{Options: Options{Out: &out}}
	if check(&r, "all arrived", 19, 20) || r.failed != 1 || r.checks != 1 {
		t.Errorf("%d of %d checks failed, want 1 of 1", r.failed, r.checks)
	}
	if got, want := out.String(), "  FAILED all arrived: expected 20, saw 19\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

// TestSabotage: a demonstration with a broken network fails.
func TestSabotage(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	var out bytes.Buffer
	d := &demo{report: report{Options: Options{Out: &out}}, ctx: t.Context(), Pair: pair, patience: 10 * time.Millisecond}
	h, err := d.open("outbound and udp.DstPort == 5353") // takes the packets that the step expects to pass
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	finish := serve(h, func([]divert.Packet) error { return nil })
	if err := errors.Join(d.drop(), finish()); err != nil {
		t.Fatal(err)
	}
	if d.failed == 0 {
		t.Errorf("no check noticed that packets were taken:\n%s", &out)
	}
}
