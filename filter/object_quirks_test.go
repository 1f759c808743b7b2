package filter

import (
	"testing"

	"github.com/opendivert/divert/packet"
)

// The accidents of the original that compiled filters and their texts keep. For those of single objects and tests see
// TestObjectQuirks and TestFormatQuirks, for those of a caller's buffer capi/testdata/interface.c. (Specification:
// filter-object.md 2 to 5.)

// TestQuirkNoCount: 256 does not fit into the 8 bits in which the original counts.
func TestQuirkNoCount(t *testing.T) { // filter-object.md 4.3
	const none = "@WinDiv_WW"
	filter := repeat(256, "tcp", " and ")
	whole, err := mustCompile(t, filter, atNetwork, Extended).Object()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, filter string
		dialect      Dialect
		object       string // "" if it does not compile
	}{
		{"a filter of 256 tests", filter, Strict, none},
		{"an object of 256 tests", whole, Strict, none},
		{"an object of 256 tests is read in full", whole, Extended, whole},
		{"the object of no tests is refused", none, Strict, ""},
		{"the object of no tests is refused in the extended dialect", none, Extended, ""},
	} {
		p, err := compiled(row.filter, atNetwork, row.dialect)
		if row.object == "" {
			if kindOf(err) != ErrBadObject {
				t.Errorf("%s: %v", row.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
		} else if object, err := p.Object(); object != row.object || err != nil {
			t.Errorf("%s: got %.16s… of %d characters, %v", row.name, object, len(object), err)
		} else if p.Len() != 256 {
			t.Errorf("%s: %d tests", row.name, p.Len())
		}
	}
	if _, err := parseObject(none, atNetwork); kindOf(err) != ErrBadObject {
		t.Errorf("ParseObject: %v", err)
	}
}

// TestQuirkReferences: the count of references to a test wraps at 256 to 0; such a test absorbs nothing.
func TestQuirkReferences(t *testing.T) { // filter-object.md 5.1
	for _, row := range []struct{ name, filter, want string }{
		// All 254 tests of tcp fail to udp, the last one succeeds there too.
		{"255 references", "(" + repeat(254, "tcp", " and ") + " and false) or udp or icmp", "udp or icmp"},
		// The first one succeeds there as well; the tests it skips still refer to udp.
		{
			"256 references", "(tcp and false and " + repeat(253, "tcp", " and ") + " and false) or udp or icmp",
			"(udp? true: icmp)",
		},
	} {
		p := mustCompile(t, row.filter, atNetwork, Strict)
		if text, err := p.Format(); text != row.want || p.Len() != 256 || err != nil {
			t.Errorf("%s: %d tests, %.40s, %v, want %s", row.name, p.Len(), text, err, row.want)
		}
	}
}

// TestFormatManyReferences: texts mean the same as their programs, however wrong the 8-bit counts are.
func TestFormatManyReferences(t *testing.T) {
	for _, n := range []int{254, 255, 256, 257, 258, 511, 512, 513, 514} {
		p := mustCompile(t, "("+repeat(n, "tcp", " and ")+") or udp or icmp", atNetwork, Extended)
		again := mustCompile(t, p.String(), atNetwork, Extended)
		for name := range packetHex {
			b, a := mustHex(t, packetHex[name]), &packet.Address{}
			if p.Match(b, a) != again.Match(b, a) {
				t.Errorf("%d references, packet %s: the text decides otherwise", n, name)
			}
		}
	}
}
