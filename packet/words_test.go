package packet

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestWords: every layer and event comes back from its text, and from the other ways to write it.
func TestWords(t *testing.T) {
	for l := range NumLayers {
		for _, text := range []string{layerWords[l], l.String(), strings.ToUpper(layerWords[l])} {
			var got Layer = 99
			if err := got.UnmarshalText([]byte(text)); err != nil || got != l {
				t.Errorf("%s is %v, %v", text, got, err)
			}
		}
	}
	for e := range NumEvents {
		b, err := json.Marshal(map[Event]Event{e: e})
		var got map[Event]Event
		if err != nil || json.Unmarshal(b, &got) != nil || len(got) != 1 || got[e] != e {
			t.Errorf("%v: %s, %v, %v", e, b, err, got)
		}
		if e == EventSocketClose || e == EventReflectClose {
			continue
		}
		var short Event = 99
		if err := short.UnmarshalText([]byte(e.String())); err != nil || short != e {
			t.Errorf("%v is %v, %v", e, short, err)
		}
	}
}

// TestWordsThatAreNone: the errors list the possible words.
func TestWordsThatAreNone(t *testing.T) {
	l, e := LayerFlow, EventFlowDeleted
	for _, row := range []struct {
		err  error
		want string
	}{
		{l.UnmarshalText([]byte("netwrok")), `there is no layer "netwrok"; the layers are network, forward, flow, socket, reflect`},
		{l.UnmarshalText(nil), `there is no layer ""; the layers are`},
		{e.UnmarshalText([]byte("close")), `the event "close" is raised by two layers: write socket.close or reflect.close`},
		{e.UnmarshalText([]byte("CLOSE")), "write socket.close or reflect.close"},
		{e.UnmarshalText([]byte("flow.bind")), `there is no event "flow.bind"; the events are packet, flow.established`},
		{e.UnmarshalText(nil), `there is no event ""`},
	} {
		if row.err == nil || !strings.Contains(row.err.Error(), row.want) {
			t.Errorf("%v, want %s", row.err, row.want)
		}
	}
	if l != LayerFlow || e != EventFlowDeleted {
		t.Errorf("an error changed %v, %v", l, e)
	}
	if _, err := NumLayers.MarshalText(); err == nil {
		t.Error("a layer too many")
	}
	if _, err := NumEvents.MarshalText(); err == nil {
		t.Error("an event too many")
	}
}
