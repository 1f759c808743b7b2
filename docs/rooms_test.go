package docs

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the path of the module, in front of the folders.
const module = "github.com/opendivert/divert"

// room is a row of rooms.md: a folder, and the folders that it may import.
type room struct {
	folder string
	knows  []string
}

var quoted = regexp.MustCompile("`([^`]+)`")

// listed returns the rooms of rooms.md, in its order.
func listed(t *testing.T) (rooms []room) {
	t.Helper()
	for _, line := range manual(t, "rooms.md") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if m := cell.FindStringSubmatch(line); m != nil && len(cells) == 3 {
			r := room{folder: m[1]}
			for _, q := range quoted.FindAllStringSubmatch(cells[2], -1) {
				r.knows = append(r.knows, q[1])
			}
			rooms = append(rooms, r)
		}
	}
	return rooms
}

// built returns the folders of the module that contain code, and the imports of each on any system. Tests may import
// more.
func built(t *testing.T) map[string][]string {
	t.Helper()
	rooms := map[string][]string{}
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", name), nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		folder := path.Dir(name)
		if _, ok := rooms[folder]; !ok {
			rooms[folder] = nil
		}
		for _, i := range f.Imports {
			imported, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			if imported == module {
				imported += "/."
			}
			if to, ok := strings.CutPrefix(imported, module+"/"); ok && !slices.Contains(rooms[folder], to) {
				rooms[folder] = append(rooms[folder], to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rooms
}

// TestRooms: rooms.md lists every folder and its imports, and no folder imports one that stands below it.
func TestRooms(t *testing.T) {
	imports := built(t)
	above := map[string]bool{}
	for _, r := range listed(t) {
		knows, ok := imports[r.folder]
		if !ok {
			t.Errorf("rooms.md lists %s, which holds no code", r.folder)
		}
		for _, k := range r.knows {
			if !slices.Contains(knows, k) {
				t.Errorf("rooms.md lets %s import %s, and it does not: take that out", r.folder, k)
			}
		}
		for _, k := range knows {
			if !slices.Contains(r.knows, k) {
				t.Errorf("%s imports %s: rooms.md does not list that. If the arrow points up there, add it; else find the thing a room above both", r.folder, k)
			}
			if !above[k] {
				t.Errorf("%s imports %s, which does not stand above it in rooms.md", r.folder, k)
			}
		}
		if above[r.folder] {
			t.Errorf("rooms.md lists %s twice", r.folder)
		}
		above[r.folder] = true
	}
	for folder := range imports {
		if !above[folder] {
			t.Errorf("rooms.md does not list %s: give it a row with one sentence, below what it imports", folder)
		}
	}
}
