package filter

import (
	"strings"
	"testing"

	"github.com/opendivert/divert/packet"
)

// What is suggested for a word of another language must compile on one of the layers, or be an operator
// or an address.
func TestOtherWords(t *testing.T) {
	for other, names := range otherWords {
		if _, reserved := words[other]; reserved || other != strings.ToLower(other) {
			t.Errorf("%s is a word of the language, or not in lower case", other)
		}
		for _, name := range names {
			if !compilesSomewhere(name) && !compilesSomewhere(name+"[0]") &&
				!compilesSomewhere("ifIdx "+name+" 1") && !compilesSomewhere("localAddr == "+name) {
				t.Errorf("%s: %s means nothing", other, name)
			}
		}
	}
}

func compilesSomewhere(text string) bool {
	for layer := range packet.NumLayers {
		if _, err := Compile(text, layer, Extended); err == nil {
			return true
		}
	}
	return false
}

func TestSuggest(t *testing.T) {
	for _, row := range []struct {
		word  string
		layer Layer
		d     Dialect
		want  string
	}{
		{"tcp.dstport", atNetwork, Extended, "did you mean tcp.DstPort?"},
		{"TCP.DSTPORT", atNetwork, Strict, "did you mean tcp.DstPort?"},
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
