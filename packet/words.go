package packet

import (
	"fmt"
	"strings"
)

// layerWords are the layers as text.
var layerWords = [NumLayers]string{"network", "forward", "flow", "socket", "reflect"}

// eventWords are the events as text. Two layers have an event CLOSE, so each name includes its layer.
var eventWords = [NumEvents]string{
	"packet", "flow.established", "flow.deleted", "socket.bind", "socket.connect", "socket.listen", "socket.accept",
	"socket.close", "reflect.open", "reflect.close",
}

// MarshalText returns the layer in a word: network, forward, flow, socket or reflect. It fails for a number that is not a
// layer.
func (l Layer) MarshalText() ([]byte, error) {
	if l >= NumLayers {
		return nil, fmt.Errorf("there is no layer %d", uint8(l))
	}
	return []byte(layerWords[l]), nil
}

// UnmarshalText sets the layer from a word of MarshalText or from its name in the filter language, in upper or lower case.
func (l *Layer) UnmarshalText(text []byte) error {
	for i, word := range layerWords {
		if s := string(text); strings.EqualFold(s, word) || strings.EqualFold(s, layerNames[i]) {
			*l = Layer(i)
			return nil
		}
	}
	return fmt.Errorf("there is no layer %q; the layers are %s", text, strings.Join(layerWords[:], ", "))
}

// MarshalText returns the event in a word with the layer that raises it, as in socket.bind; a packet is just packet. It
// fails for a number that is not an event.
func (e Event) MarshalText() ([]byte, error) {
	if e >= NumEvents {
		return nil, fmt.Errorf("there is no event %d", uint8(e))
	}
	return []byte(eventWords[e]), nil
}

// UnmarshalText sets the event from a word of MarshalText, in upper or lower case. The layer may be left out, except for
// close, which two layers raise.
func (e *Event) UnmarshalText(text []byte) error {
	s, found := strings.ToLower(string(text)), -1
	for i, word := range eventWords {
		_, short, _ := strings.Cut(word, ".")
		switch {
		case s == word:
			*e = Event(i)
			return nil
		case s != short || s == "":
		case found >= 0:
			return fmt.Errorf("the event %q is raised by two layers: write %s or %s", text, eventWords[found], word)
		default:
			found = i
		}
	}
	if found < 0 {
		return fmt.Errorf("there is no event %q; the events are %s", text, strings.Join(eventWords[:], ", "))
	}
	*e = Event(found)
	return nil
}
