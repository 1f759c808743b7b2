//go:build linux

package linux

import (
	"testing"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

func TestPaths(t *testing.T) {
	rows := []struct {
		name  string
		layer packet.Layer
		flags uint64
		want  []rules.Chain
	}{
		{"NETWORK", packet.LayerNetwork, 0, []rules.Chain{rules.Inbound, rules.Outbound}},
		{"NETWORK, fragments", packet.LayerNetwork, engine.FlagFragments | engine.FlagSniff,
			[]rules.Chain{rules.InboundFragments, rules.Outbound}},
		{"NETWORK_FORWARD", packet.LayerForward, 0, []rules.Chain{rules.Forward}},
		{"NETWORK_FORWARD, fragments", packet.LayerForward, engine.FlagFragments, []rules.Chain{rules.Forward}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got := paths(row.layer, row.flags)
			if len(got) != len(row.want) {
				t.Fatalf("%v, want %v", got, row.want)
			}
			for i := range got {
				if got[i] != row.want[i] {
					t.Errorf("%v, want %v", got, row.want)
				}
			}
		})
	}
}
