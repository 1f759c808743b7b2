package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest = regexp.MustCompile("`([a-z0-9]+)\\.(Test\\w+)`")
	testOf    = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	packageOf = regexp.MustCompile("^\\| `([a-z0-9]+)` \\| `([a-z0-9./]+)` \\|")
)

// TestSecurityTests: each line of the tables of the security manual names tests, and all of them exist.
func TestSecurityTests(t *testing.T) {
	lines := manual(t, "security.md")
	tests := map[string]map[string]bool{} // by the name of their package in the manual
	for _, line := range lines {
		if m := packageOf.FindStringSubmatch(line); m != nil {
			tests[m[1]] = testsIn(t, filepath.Join("..", m[2]))
		}
	}
	checked, table := 0, false
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
			t.Errorf("line %d names no test: %s", i+1, line)
		}
		for _, m := range named {
			checked++
			if !tests[m[1]][m[2]] {
				t.Errorf("line %d: there is no test %s.%s", i+1, m[1], m[2])
			}
		}
	}
	if checked < 50 {
		t.Errorf("%d tests are named: the manual is written in another way", checked)
	}
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
