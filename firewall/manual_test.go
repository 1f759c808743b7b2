package firewall

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestManual: the files of rules in the manual are valid, and its tables are complete.
func TestManual(t *testing.T) {
	b, err := os.ReadFile("../docs/firewall.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1)
	if len(blocks) < 2 {
		t.Fatalf("%d files of rules", len(blocks))
	}
	for _, block := range blocks {
		if _, err := Parse([]byte(block[1]), folder(t)); err != nil {
			var wrong *FileError
			errors.As(err, &wrong)
			t.Errorf("%v\n%s", err, wrong.Snippet())
		}
	}
	for _, name := range append(append([]string{}, fileNames...), ruleNames...) {
		if name != "name" && name != "action" && !strings.Contains(text, "`"+name+"`") && !strings.Contains(text, "`"+name+":") {
			t.Errorf("the manual does not tell of %s", name)
		}
	}
}
