// Command testreport reads the output of `go test -json`. It prints the output of plain `go test`, and at the end the
// skipped tests with their reasons, so that a skip cannot be mistaken for a pass.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := report(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		os.Exit(1)
	}
}

// event is one line of `go test -json` (cmd/test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// test identifies a test, or a package if Test is empty.
type test struct{ Package, Test string }

// skips are the tests that were skipped, by their reason.
type skips map[string][]test

func report(r io.Reader, w io.Writer) error {
	out := bufio.NewWriter(w)
	printed := make(map[test][]string) // output of tests that have not ended
	skipped := make(skips)
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
				fmt.Fprint(out, line) // output of the go command itself
			} else {
				e.take(out, printed, skipped)
			}
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	for t, lines := range printed { // a test that never ended
		fmt.Fprintf(out, "%s %s did not end\n%s", t.Package, t.Test, strings.Join(lines, ""))
	}
	skipped.print(out)
	return out.Flush()
}

// take takes one event.
func (e *event) take(out *bufio.Writer, printed map[test][]string, skipped skips) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "output", "build-output":
		if e.Test == "" {
			if e.Output != "PASS\n" {
				fmt.Fprint(out, e.Output)
				out.Flush()
			}
			return
		}
		printed[t] = append(printed[t], e.Output)
	case "pass", "bench":
		delete(printed, t)
	case "skip":
		if e.Test != "" {
			why := reason(printed[t])
			skipped[why] = append(skipped[why], t)
		}
		delete(printed, t)
	case "fail":
		fmt.Fprint(out, strings.Join(printed[t], ""))
		delete(printed, t)
	}
}

// place is the place in a test's log line.
var place = regexp.MustCompile(`^\s+\w+\.go:\d+: `)

// reason is the last log line of a skipped test.
func reason(lines []string) string {
	for _, l := range slices.Backward(lines) {
		if at := place.FindString(l); at != "" {
			return strings.TrimSpace(l[len(at):])
		}
	}
	return "no reason"
}

// print lists the reasons, the most frequent first, with one test of each.
func (s skips) print(out *bufio.Writer) {
	if len(s) == 0 {
		return
	}
	reasons := make([]string, 0, len(s))
	n := 0
	for r, tests := range s {
		reasons = append(reasons, r)
		n += len(tests)
	}
	slices.SortFunc(reasons, func(a, b string) int {
		if d := len(s[b]) - len(s[a]); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	fmt.Fprintf(out, "\n%d tests were skipped:\n", n)
	for _, r := range reasons {
		t := s[r][0]
		fmt.Fprintf(out, "%5d  %s (%s %s)\n", len(s[r]), r, t.Package[strings.LastIndex(t.Package, "/")+1:], t.Test)
	}
}
