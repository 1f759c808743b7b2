package main

import (
	"fmt"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
	"github.com/spf13/cobra"
)

// firstFlag is --first: only the first packets of each flow.
type firstFlag struct {
	n     uint32
	given func() bool
}

func (f *firstFlag) add(cmd *cobra.Command) {
	cmd.Flags().Uint32Var(&f.n, "first", 0, "only the first `n` packets of each flow, both directions together, and all packets without a flow")
	f.given = func() bool { return cmd.Flags().Changed("first") }
}

// narrow returns a filter for the first packets that p matches in each flow; text is the source of p.
func (f *firstFlag) narrow(text string, p *filter.Program, d *dialectFlags) (string, error) {
	switch {
	case f.given == nil || !f.given():
		return text, nil
	case f.n == 0:
		return "", usagef("--first 0 leaves no packet; it must be 1 or more")
	case d.strict:
		return "", usagef("--first counts packets with a field of the extended filter language: leave out --strict")
	case hasEvents(d.layer()):
		return "", usagef("--first applies to packets, but the layer %s has events", word(d.layer()))
	}
	plain, err := p.Format() // text may be an object string
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("(%s) and not (flow.Packets > %d)", plain, f.n), nil
}

// fileMatcher matches the packets of a capture file, and counts them in flows if the filter asks for that.
type fileMatcher struct {
	program *prog.Program
	names   map[string]uint32 // indexes for the interfaces that the filter names; files do not record them
	told    bool              // the file has told the process of some packet
	flows   engine.FlowTable
}

func newFileMatcher(p *filter.Program) (*fileMatcher, error) {
	m := &fileMatcher{}
	for i, name := range p.Interfaces() {
		if m.names == nil {
			m.names = map[string]uint32{}
		}
		m.names[name] = uint32(i + 1)
	}
	p, err := p.WithInterfaces(func(name string) uint32 { return m.names[name] })
	m.program = (*prog.Program)(p)
	return m, err
}

// matches reports whether a record matches. The time of flows, the process and the interface come from the record.
func (m *fileMatcher) matches(r *record) bool {
	var parsed packet.Parsed
	if !capfile.Parse(&parsed, r.data, r.length) {
		return false
	}
	p, known := m.program, prog.Known{}
	if p.CountsFlows() {
		p, known = m.flows.Known(&engine.Config{FlowTable: flow.DefaultSize}, p, r.data, &parsed, int(parsed.Length), r.when.UnixNano())
	}
	known.Process, known.HasProcess = r.pid, true
	addr := r.addr
	if m.told = m.told || r.pid != 0; m.names != nil || r.pid != 0 {
		copied := *r.addr
		addr = &copied
		var name [packet.ProcessNameSize]byte
		copy(name[:commSize], r.program)
		addr.SetProcessName(name)
		if m.names != nil {
			d := addr.Network()
			d.IfIdx = m.names[r.device]
			addr.SetNetwork(d)
		}
	}
	return p.MatchKnown(r.data, &parsed, addr, known)
}
