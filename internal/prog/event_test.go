package prog

import (
	"testing"

	"github.com/opendivert/divert/packet"
)

// TestEventLayers: every event has a layer that raises it, and the events of a layer are consecutive, as EventsOf returns
// them.
func TestEventLayers(t *testing.T) {
	for e := range packet.Event(packet.NumEvents) {
		if EventLayers(e) == 0 {
			t.Errorf("no layer raises %v", e)
		}
	}
	if got := EventLayers(packet.NumEvents); got != 0 {
		t.Errorf("%v raise a number that is no event", got)
	}
	for l := range packet.NumLayers {
		first, last := EventsOf(l)
		for e := range packet.Event(packet.NumEvents) {
			within := first <= e && e <= last
			if EventLayers(e).Has(l) != within || isEventOf(uint64(e), l) != within {
				t.Errorf("%v: %v is between %v and %v: %v", l, e, first, last, within)
			}
		}
	}
}
