package process

import (
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	const rest = " S 77 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 2"
	for _, name := range []string{"sh", "", "a b", ") R 1 (", "((", "\x1b[31m", "a\nb"} {
		s, err := parseStat([]byte("4711 (" + name + ")" + rest))
		if err != nil || s.name != name || s.parent != 77 || s.started != 12345 {
			t.Errorf("%q: %+v, %v", name, s, err)
		}
	}
	for _, bad := range []string{"", "1", "1 (x", ")1(", "1 (x) S 1", strings.Replace("1 (x)"+rest, "77", "-1", 1), strings.Replace("1 (x)"+rest, "12345", "x", 1)} {
		if s, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, s)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("4711 (a) b) S 77 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 2"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && !strings.Contains(string(b), "("+s.name+")") {
			t.Errorf("the name is %q", s.name)
		}
	})
}
