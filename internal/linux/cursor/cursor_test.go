package cursor

import "testing"

func TestPack(t *testing.T) {
	tests := []struct {
		name     string
		priority int16
		sub      uint8
		old      uint32
	}{
		{"lowest", -30000, 0, 0},
		{"default", 0, 0, 6},
		{"equal priorities", 0, 255, 15},
		{"highest", 30000, 255, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := NewKey(tt.priority, tt.sub)
			v := k.Pack(tt.old)
			got, ok := Unpack(v)
			if !ok || got != k || v&OldMask != tt.old || got.Sub() != tt.sub {
				t.Errorf("Pack(%#x) = %#x, which unpacks to %#x, %v, sub %d", tt.old, v, got, ok, got.Sub())
			}
			first, last := k.Served()
			if v < first || v > last {
				t.Errorf("field %#x is not among the served ones %#x to %#x", v, first, last)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	keys := []Key{NewKey(-30000, 0), NewKey(-30000, 1), NewKey(-1, 255), NewKey(0, 0), NewKey(0, 1), NewKey(30000, 255)}
	for i := 1; i < len(keys); i++ {
		lower, higher := keys[i-1], keys[i]
		if lower >= higher {
			t.Errorf("key %d (%#x) is not below key %d (%#x)", i-1, lower, i, higher)
		}
		// A packet that the higher handle served is not yet served by the lower one, and the reverse.
		if _, last := lower.Served(); higher.Pack(15) <= last {
			t.Errorf("a packet served by %#x counts as served by %#x", higher, lower)
		}
		if first, last := higher.Served(); lower.Pack(0) < first || lower.Pack(15) > last {
			t.Errorf("a packet served by %#x would meet %#x again", lower, higher)
		}
	}
	if again := NewKey(-7, 0).Pack(NewKey(7, 1).Pack(3)); again&OldMask != 3 {
		t.Errorf("the old priority is lost with the second cursor: %#x", again)
	}
	if _, ok := Unpack(7); ok {
		t.Error("an ordinary priority passes for a cursor")
	}
}
