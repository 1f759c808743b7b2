package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	namedTest = regexp.MustCompile("`([a-z0-9]+)\\.(Test\\w+)`")
	testOf    = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	packageOf = regexp.MustCompile("^\\| `([a-z0-9]+)` \\| `([a-z0-9./]+)` \\|")
)

// TestNamedTests: each line of the tables of these pages names tests, and all of them exist.
func TestNamedTests(t *testing.T) {
	security := manual(t, "security.md")
	tests := map[string]map[string]bool{ // by the manual's name for their package
		"backlog": testsIn(t, "../internal/backlog"), "order": testsIn(t, "../internal/linux/order"),
	}
	for _, line := range security {
		if m := packageOf.FindStringSubmatch(line); m != nil {
			tests[m[1]] = testsIn(t, filepath.Join("..", m[2]))
		}
	}
	reliability := manual(t, "reliability.md")
	end := slices.Index(reliability, "## How it is found out")
	if end < 0 {
		t.Fatal("the test does not recognise the form of reliability.md")
	}
	if n := checkNamed(t, "security.md", security, tests); n < 50 {
		t.Errorf("only %d tests found in security.md: the test does not recognise its form", n)
	}
	if n := checkNamed(t, "reliability.md", reliability[:end], tests); n < 25 {
		t.Errorf("only %d tests found in reliability.md: the test does not recognise its form", n)
	}
}

// checkNamed checks the lines of tables and returns how many tests they name.
func checkNamed(t *testing.T, page string, lines []string, tests map[string]map[string]bool) (checked int) {
	t.Helper()
	table := false
	for i, line := range lines {
		if !strings.HasPrefix(line, "|") {
			table = false
			continue
		}
		heads := !table
		table = true
		if heads || strings.HasPrefix(line, "|---") || packageOf.MatchString(line) {
			continue
		}
		named := namedTest.FindAllStringSubmatch(line, -1)
		if len(named) == 0 {
			t.Errorf("%s:%d names no test: %s", page, i+1, line)
		}
		for _, m := range named {
			checked++
			if !tests[m[1]][m[2]] {
				t.Errorf("%s:%d: there is no test %s.%s", page, i+1, m[1], m[2])
			}
		}
	}
	return checked
}

// testsIn returns the names of the tests in a directory.
func testsIn(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no tests, %v", dir, err)
	}
	all := map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testOf.FindAllSubmatch(b, -1) {
			all[string(m[1])] = true
		}
	}
	return all
}
