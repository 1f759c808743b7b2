package docs

import (
	"context"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/wincode"
	"github.com/opendivert/divert/packet"
)

// manual returns the lines of a page of the manual.
func manual(t *testing.T, name string) []string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(b), "\n")
}

// cell is the first column of a table, if it contains code.
var cell = regexp.MustCompile("^\\| `([^`]+)` \\|")

// TestFilters: the manual's filters behave as described. Indented lines and the table of examples compile; those in the
// table of refusals compile only in the strict dialect.
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
		t.Errorf("found %d filters and %d refusals: the test does not recognise the manual's form", good, refused)
	}
}

// TestGo: each Go block in the manual that is a program compiles. A block marked as a fragment (```go fragment) parses,
// as declarations or as statements, with … and ... for omissions.
func TestGo(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles programs; not with -short")
	}
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := moduleBeside(t, root)
	programs := 0
	fragments := 0
	for _, file := range append(files, "../README.md") {
		for _, b := range goBlocks(manual(t, file)) {
			switch {
			case b.mark == "fragment":
				fragments++
				if err := parseFragment(b.code); err != nil {
					t.Errorf("%s:%d: %v", file, b.line, err)
				}
			case b.mark != "":
				t.Errorf("%s:%d: a block of Go is marked %q, and may be a fragment", file, b.line, b.mark)
			default:
				programs++
				name := "main.go"
				if strings.Contains(b.code, "testing.T") {
					name = "main_test.go"
				}
				folder := filepath.Join(dir, fmt.Sprintf("%s_%d", strings.TrimSuffix(filepath.Base(file), ".md"), b.line))
				if err := os.MkdirAll(folder, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(folder, name), []byte(b.code), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if programs == 0 || fragments == 0 {
		t.Fatalf("found %d programs and %d fragments: the test does not recognise the manual's form", programs, fragments)
	}
	vet := exec.Command("go", "vet", "-mod=mod", "./...")
	vet.Dir = dir
	if out, err := vet.CombinedOutput(); err != nil {
		t.Errorf("go vet of the %d programs of the manual, named by page and line: %v\n%s", programs, err, out)
	}
}

// moduleBeside makes a module that uses the working copy of this one, with the same versions of all others.
func moduleBeside(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(mod), "module "+module, "module manual", 1) +
		fmt.Sprintf("\nrequire %s v0.0.0\n\nreplace %s => %s\n", module, module, strconv.Quote(root))
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sum, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "go.sum"), sum, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// goBlock is a Go block of the manual.
type goBlock struct {
	line int // number of the first
	mark string
	code string
}

func goBlocks(lines []string) (blocks []goBlock) {
	var b *goBlock
	for i, line := range lines {
		switch mark, ok := strings.CutPrefix(line, "```go"); {
		case b == nil && ok:
			b = &goBlock{line: i + 2, mark: strings.TrimSpace(mark)}
		case b != nil && line == "```":
			blocks = append(blocks, *b)
			b = nil
		case b != nil:
			b.code += line + "\n"
		}
	}
	return blocks
}

// parseFragment parses declarations or statements.
func parseFragment(code string) error {
	code = regexp.MustCompile(`(?m)^\s*(…|\.\.\.)$`).ReplaceAllString(code, "")
	_, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+code, 0)
	if err != nil {
		if _, inside := parser.ParseFile(token.NewFileSet(), "", "package p\nfunc f() {\n"+code+"}\n", 0); inside == nil {
			return nil
		}
	}
	return err
}

// TestErrorsPage: the page of errors lists every error of handles and sets, and every kind of filter error, with its
// number.
func TestErrorsPage(t *testing.T) {
	page := strings.Join(manual(t, "errors.md"), "\n")
	for file, form := range map[string]string{"../errors.go": `(?m)^\t(Err\w+) += engine\.`, "../filter/errors.go": `(?m)^\t(Err\w+) .*(?:= \d+|// a)`} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(form).FindAllStringSubmatch(string(text), -1)
		if len(found) < 8 {
			t.Errorf("%s has %d errors: is it read as it is written?", file, len(found))
		}
		for _, m := range found {
			if !strings.Contains(page, "`"+m[1]+"`") {
				t.Errorf("errors.md lacks %s of %s", m[1], file)
			}
		}
	}
	// Numbers of the C interface and of Windows, wherever they are named.
	for file, form := range map[string]string{"../capi/windivert.h": `#define ERROR_\w+ ([1-9]\d*)`, "../internal/windows/error.go": `(?m)^\terrno\w+ += (\w+)`} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(form).FindAllStringSubmatch(string(text), -1)
		if len(found) < 15 {
			t.Errorf("%s has %d numbers: is it read as it is written?", file, len(found))
		}
		for _, m := range found {
			if !regexp.MustCompile(`(?m)^\| (\d+, )?`+m[1]+`( W)? \|`).MatchString(page) && !regexp.MustCompile(`(?m)^\| `+m[1]+`, \d+`).MatchString(page) {
				t.Errorf("errors.md lacks the number %s of %s", m[1], file)
			}
		}
	}
	for name, kind := range map[string]filter.ErrorKind{
		"ErrTooDeep": filter.ErrTooDeep, "ErrTooLong": filter.ErrTooLong, "ErrBadToken": filter.ErrBadToken, "ErrBadTokenForLayer": filter.ErrBadTokenForLayer,
		"ErrUnexpectedToken": filter.ErrUnexpectedToken, "ErrIndexOutOfBounds": filter.ErrIndexOutOfBounds, "ErrBadObject": filter.ErrBadObject,
		"ErrOutOfRange": filter.ErrOutOfRange, "ErrBadPrefix": filter.ErrBadPrefix, "ErrBadSet": filter.ErrBadSet,
	} {
		if want := fmt.Sprintf("| `%s` | %d |", name, kind); !strings.Contains(page, want) {
			t.Errorf("errors.md lacks %s", want)
		}
	}
	for name, err := range map[string]error{
		"ErrInvalid": divert.ErrInvalid, "ErrNotSupported": divert.ErrNotSupported, "ErrNoProcess": divert.ErrNoProcess, "ErrShortBuffer": divert.ErrShortBuffer,
		"ErrTooLarge": divert.ErrTooLarge, "ErrHopLimit": divert.ErrHopLimit, "ErrNoSuchDevice": divert.ErrNoSuchDevice, "ErrRecvOnly": divert.ErrRecvOnly,
		"ErrSendOnly": divert.ErrSendOnly, "ErrDropOnly": divert.ErrDropOnly, "ErrShutdown": divert.ErrShutdown, "ErrRulesGone": divert.ErrRulesGone,
		"filter.ErrSetKind": filter.ErrSetKind, "filter.ErrSetFull": filter.ErrSetFull, "io.EOF": io.EOF, "net.ErrClosed": net.ErrClosed,
		"os.ErrDeadlineExceeded": os.ErrDeadlineExceeded, "context.Canceled": context.Canceled, "context.DeadlineExceeded": context.DeadlineExceeded,
		"os.ErrPermission": os.ErrPermission,
	} {
		if want := fmt.Sprintf("| `%s` | %d |", name, wincode.Of(err)); !strings.Contains(page, want) {
			t.Errorf("errors.md lacks %s", want)
		}
	}
}
