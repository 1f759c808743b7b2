//go:build linux

package linux

import (
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// path is a way of packets that a handle watches.
type path struct {
	chain    rules.Chain
	outbound bool
}

// paths returns the ways of a layer's packets (specification: api.md 14 and 15).
func paths(layer packet.Layer, flags uint64) []path {
	if layer == packet.LayerForward {
		return []path{{rules.Forward, true}}
	}
	inbound := rules.Inbound
	if flags&engine.FlagFragments != 0 {
		inbound = rules.InboundFragments
	}
	return []path{{inbound, false}, {rules.Outbound, true}}
}
