package prog

import "testing"

// TestHeaderBits: the bits of a field lie within a word of its header, and fields that test for a header have none.
func TestHeaderBits(t *testing.T) {
	most := map[Field]int{FieldIP: 20, FieldIPv6: 40, FieldICMP: 8, FieldICMPv6: 8, FieldTCP: 20, FieldUDP: 8}
	n := 0
	for f := range Field(NumFields) {
		at, ok := HeaderBits(f)
		if !ok {
			continue
		}
		n++
		if at.Offset%4 != 0 || at.Offset < 0 || at.Offset+4 > most[at.Header] || at.Width < 1 || at.Shift < 0 || at.Shift+at.Width > 32 {
			t.Errorf("%v: %+v", f, at)
		}
		if most[f] != 0 {
			t.Errorf("%v has bits of a header, and is the test for one", f)
		}
	}
	if n < 40 {
		t.Errorf("%d fields have bits of a header", n)
	}
	if at, ok := HeaderBits(FieldTCPSyn); !ok || at != (Bits{Header: FieldTCP, Offset: 12, Shift: 17, Width: 1}) {
		t.Errorf("tcp.Syn: %+v, %v", at, ok)
	}
	if at, ok := HeaderBits(Field(NumFields)); ok {
		t.Errorf("a number that is no field: %+v", at)
	}
}
