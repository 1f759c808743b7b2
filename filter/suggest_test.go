package filter

import (
	"strings"
	"testing"

	"github.com/opendivert/divert/packet"
)

// A suggestion for a word of another language must compile on one of the layers, or be an operator
// or an address.
func TestOtherWords(t *testing.T) {
	for other, names := range otherWords {
		if _, reserved := words[other]; reserved || other != strings.ToLower(other) {
			t.Errorf("%s is a word of the language, or not in lower case", other)
		}
		for _, name := range names {
			if !compilesSomewhere(name) && !compilesSomewhere(name+"[0]") &&
				!compilesSomewhere("ifIdx "+name+" 1") && !compilesSomewhere(name+` == "eth0"`) && !compilesSomewhere("localAddr == "+name) {
				t.Errorf("%s: %s means nothing", other, name)
			}
		}
	}
}

// The examples in hints about other words must compile on one of the layers.
func TestOtherThings(t *testing.T) {
	for other, text := range otherThings {
		if _, reserved := words[other]; reserved || other != strings.ToLower(other) || otherWords[other] != nil {
			t.Errorf("%s is a word of the language, known by another list, or not in lower case", other)
		}
		fields := strings.Fields(strings.ReplaceAll(text, ";", " "))
		for i := 1; i+1 < len(fields); i++ {
			if op := fields[i]; op == "==" || op == ">=" || op == "<=" {
				if test := strings.Join(fields[i-1:i+2], " "); !compilesSomewhere(test) {
					t.Errorf("%s: %s does not compile", other, test)
				}
			}
		}
	}
}

func compilesSomewhere(text string) bool {
	for layer := range packet.NumLayers {
		if _, err := compiled(text, layer, Extended); err == nil {
			return true
		}
	}
	return false
}

func TestSuggest(t *testing.T) {
	for _, row := range []struct {
		word  string
		layer packet.Layer
		d     Dialect
		want  string
	}{
		{"tcp.dstport", atNetwork, Extended, "did you mean tcp.DstPort?"},
		{"TCPDSTPORT", atNetwork, Strict, "did you mean tcp.DstPort?"},
		{"IN", atNetwork, Extended, "did you mean in?"},
		{"IN", atNetwork, Strict, ""},
		{"ture", atNetwork, Extended, "did you mean TRUE or true?"},
		{"Established", atFlow, Extended, "did you mean ESTABLISHED?"},
		{"SrcAddr", atNetwork, Extended, "did you mean ip.SrcAddr or ipv6.SrcAddr?"},
		{"pid", atFlow, Extended, "did you mean processId?"},
		{"prot", atFlow, Extended, ""},
		{"x", atNetwork, Extended, ""},
		{strings.Repeat("tcp", 20), atNetwork, Extended, ""},
	} {
		if got := suggest(row.word, row.layer, row.d); got != row.want {
			t.Errorf("%s at %v, %v: got %q, want %q", row.word, row.layer, row.d, got, row.want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, row := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "tcp", 3}, {"tcp", "", 3}, {"tcp", "tcp", 0},
		{"tpc", "tcp", 1}, {"tp", "tcp", 1}, {"tccp", "tcp", 1}, {"tdp", "tcp", 1}, {"udp", "tcp", 2},
	} {
		if got := distance(row.a, row.b); got != row.want {
			t.Errorf("%q to %q: got %d, want %d", row.a, row.b, got, row.want)
		}
	}
}

// TestStrictHints: when a filter in the strict dialect uses additions of the extended one, the hint says so. Kinds and
// positions are still the original's (specification: filter-language.md 8).
func TestStrictHints(t *testing.T) {
	for _, row := range []struct {
		text  string
		kind  ErrorKind
		pos   uint32
		what  string // the hint says that this belongs to the extended dialect
		write string // what the hint advises instead
	}{
		{"tcp.DstPort in {80, 443}", ErrBadToken, 12, "sets", "tcp.DstPort == 80 or tcp.DstPort == 443"},
		{"tcp.DstPort not in {80}", ErrBadToken, 16, "sets", "tcp.DstPort != 80"},
		{"ip.SrcAddr == 10.0.0.0/8", ErrBadToken, 23, "prefixes", "ip.SrcAddr >= 10.0.0.0 and ip.SrcAddr <= 10.255.255.255"},
		{"ipv6.SrcAddr != fe80::/10", ErrBadToken, 23, "prefixes", "ipv6.SrcAddr < fe80:: or ipv6.SrcAddr >= fec0::"},
		{"not (tcp or udp)", ErrUnexpectedToken, 4, "\"not\" before a parenthesis", "(tcp or udp? false: true)"},
		{"outbound and (tcp or !(ip))", ErrUnexpectedToken, 22, "\"not\" before a parenthesis", "outbound and (tcp or (ip? false: true))"},
		{"(tcp? udp:icmp)", ErrBadToken, 6, "a colon right behind a word", "(tcp? udp :icmp)"},
	} {
		if _, err := compiled(row.text, atNetwork, Extended); err != nil {
			t.Errorf("%s: the extended dialect says %v", row.text, err)
		}
		_, err := compiled(row.text, atNetwork, Strict)
		e, ok := err.(*Error)
		if !ok || e.Kind != row.kind || e.Pos != row.pos {
			t.Errorf("%s: %#v, want kind %d at %d", row.text, err, row.kind, row.pos)
			continue
		}
		if !strings.HasPrefix(e.Hint, row.what) || !strings.Contains(e.Hint, " to the extended dialect; in this one ") {
			t.Errorf("%s: hint %q", row.text, e.Hint)
		}
		if _, err := compiled(row.write, atNetwork, Strict); err != nil {
			t.Errorf("%s: instead of %s: %v", row.write, row.text, err)
		}
	}
	// Hints of both dialects, which do not change the strict one's kinds and positions.
	for _, row := range []struct {
		text string
		kind ErrorKind
		pos  uint32
		hint string
	}{
		{"tcp.DstPort =< 80", ErrUnexpectedToken, 13, "the operator is <="},
		{"tcp.DstPort => 80", ErrUnexpectedToken, 13, "the operator is >="},
		{"tcp.DstPort =! 80", ErrUnexpectedToken, 13, "the operator is !="},
		{"tcp.DstPort <> 80", ErrUnexpectedToken, 13, "the operator is !="},
		{"tcp.DstPort >< 80", ErrUnexpectedToken, 13, "the operator is !="},
		{"(tcp.DstPort =< 80)", ErrUnexpectedToken, 14, "the operator is <="},
		{"@WinDiv_WX_eXWWA", ErrBadObject, 0, "text that starts with @WinDiv_ is a compiled filter object, and this one is damaged: compile the filter again"},
	} {
		_, err := compiled(row.text, atNetwork, Strict)
		if e, ok := err.(*Error); !ok || e.Kind != row.kind || e.Pos != row.pos || e.Hint != row.hint {
			t.Errorf("%s: %#v, want kind %d at %d, %s", row.text, err, row.kind, row.pos, row.hint)
		}
	}
	// A name that is no extension gets no such hint.
	for _, text := range []string{"tcp.Dstport == 80", "tcp.DstPort == 80-90", "ip.SrcAddr == 10.0.0.0\\8", "not tcp udp"} {
		_, err := compiled(text, atNetwork, Strict)
		if e, ok := err.(*Error); !ok || strings.Contains(e.Hint, "extended") {
			t.Errorf("%s: %#v", text, err)
		}
	}
}
