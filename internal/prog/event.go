package prog

import "github.com/opendivert/divert/packet"

// eventLayers are the layers that raise each event.
var eventLayers = [packet.NumEvents]Layers{
	packet.EventPacket:          OnPackets,
	packet.EventFlowEstablished: OnFlow,
	packet.EventFlowDeleted:     OnFlow,
	packet.EventSocketBind:      OnSocket,
	packet.EventSocketConnect:   OnSocket,
	packet.EventSocketListen:    OnSocket,
	packet.EventSocketAccept:    OnSocket,
	packet.EventSocketClose:     OnSocket,
	packet.EventReflectOpen:     OnReflect,
	packet.EventReflectClose:    OnReflect,
}

// EventLayers returns the layers that raise an event, none for an invalid number.
func EventLayers(e packet.Event) Layers {
	if e >= packet.NumEvents {
		return 0
	}
	return eventLayers[e]
}

// EventsOf returns the first and the last event that a layer raises. It also raises those between.
func EventsOf(layer packet.Layer) (first, last packet.Event) {
	first = packet.NumEvents
	for e, layers := range eventLayers {
		if layers.Has(layer) {
			first, last = min(first, packet.Event(e)), packet.Event(e)
		}
	}
	return first, last
}

// isEventOf reports whether the layer, or for anyLayer any layer, raises the event.
func isEventOf(event uint64, layer packet.Layer) bool {
	return event < uint64(packet.NumEvents) && (layer == anyLayer || eventLayers[event].Has(layer))
}
