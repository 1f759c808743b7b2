package docs

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// manual returns the text of a file of the manual, in lines.
func manual(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(b), "\n")
}

// cell is the first column of a table, if it holds code.
var cell = regexp.MustCompile("^\\| `([^`]+)` \\|")

// TestFilters: the filters of the manual are what it says. Indented lines and the table of examples compile; those of
// the table of refusals compile in the strict dialect only.
func TestFilters(t *testing.T) {
	section, good, refused := "", 0, 0
	for _, line := range manual(t, "filter-language.md") {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "**") {
			section = line
		}
		code := ""
		if m := cell.FindStringSubmatch(line); m != nil {
			code = m[1]
		}
		switch {
		case strings.HasPrefix(section, "**Refusals"):
			if code == "" {
				continue
			}
			refused++
			if _, err := filter.Compile(code, packet.LayerNetwork, filter.Extended); err == nil {
				t.Errorf("the extended dialect does not refuse %s", code)
			}
			if _, err := filter.Compile(code, packet.LayerNetwork, filter.Strict); err != nil {
				t.Errorf("the strict dialect refuses %s: %v", code, err)
			}
			continue
		case section != "## Examples":
			code = strings.TrimPrefix(line, "    ")
			if code == line || strings.HasPrefix(code, "divert ") || strings.Contains(code, "^^") || strings.HasPrefix(code, "hint:") || strings.HasPrefix(code, "tcp.dstport") {
				continue
			}
		}
		if code == "" {
			continue
		}
		good++
		if _, err := filter.Compile(code, packet.LayerNetwork, filter.Extended); err != nil {
			t.Errorf("%s: %v", code, err)
		}
	}
	if good < 10 || refused < 6 {
		t.Errorf("found %d filters and %d refusals: the manual is written in another way", good, refused)
	}
}
