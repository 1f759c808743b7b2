//go:build linux

package linux

import (
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// paths returns the chains on the ways of a layer's packets (specification: api.md 14 and 15).
func paths(layer packet.Layer, flags uint64) []rules.Chain {
	if layer == packet.LayerForward {
		return []rules.Chain{rules.Forward}
	}
	inbound := rules.Inbound
	if flags&engine.FlagFragments != 0 {
		inbound = rules.InboundFragments
	}
	return []rules.Chain{inbound, rules.Outbound}
}
