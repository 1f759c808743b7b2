package divert

import (
	"fmt"
	"net"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
)

// AcceptFlow accepts a received packet as Accept does, and with it the rest of its flow in both directions: from now on
// packets of the flow that match the filter go on to the handles below without coming to the program. A handle that
// sniffs gets no more copies of them. On Linux, where the kernel decides, such packets never leave it. Packets of the
// flow already in the handle's queue are still received; the same call on each of them changes nothing. If p was sent,
// accepted or dropped before, AcceptFlow decides only the rest.
//
// A flow is TCP or UDP between two addresses and ports, or ICMP echo between two addresses with one identifier. Its verdict
// holds until
//
//   - a TCP SYN without ACK begins another flow between the same ends,
//   - two seconds after a RST, or after FINs of both sides,
//   - the flow has had no packet for a time, see WithFlowIdle,
//   - the table is full and the other flows in it are more recent, see WithFlowTable,
//   - DropFlow decides otherwise, or ForgetFlow, ForgetFlows, SetFilter, SetProgram or Close ends it.
//
// From the next packet on, the flow then comes to the program again. Fragments and ICMP errors belong to no flow;
// reassembled datagrams do.
//
// AcceptFlow fails with ErrInvalid for a packet that this handle has not received or that belongs to no flow, and on
// handles at layers with events or with the flags Drop or SendOnly; with ErrRecvOnly, ErrShutdown or net.ErrClosed; or
// with ErrNotSupported. The packet then still waits, unless accepting it was the step that failed.
func (h *Handle) AcceptFlow(p *Packet) error {
	if h.flags&(RecvOnly|Sniff) == RecvOnly {
		return opError("accept flow", ErrRecvOnly)
	}
	return opError("accept flow", h.decideFlow(p, flow.Accept))
}

// DropFlow drops a received packet, and with it the rest of its flow in both directions, as AcceptFlow accepts them.
// Where the kernel decides, it drops the packets as for a handle with the flag Drop: their sender gets no error. DropFlow
// fails as AcceptFlow does, and with ErrInvalid on a handle that sniffs. It works on handles that only receive, and after
// ShutdownSend.
func (h *Handle) DropFlow(p *Packet) error {
	if h.flags&Sniff != 0 {
		return opError("drop flow", fmt.Errorf("%w: a handle that sniffs has copies, and the packets themselves go on; open it without the flag Sniff to drop", ErrInvalid))
	}
	return opError("drop flow", h.decideFlow(p, flow.Drop))
}

// flows returns the engine if the handle decides flows.
func (h *Handle) flows(p *Packet) (engine.Flows, error) {
	f, ok := h.platform().(engine.Flows)
	switch {
	case h.engine == nil:
		return nil, errUnopened
	case h.closed.Load():
		return nil, net.ErrClosed
	case p == nil:
		return nil, errNilPacket
	case h.layer != LayerNetwork && h.layer != LayerForward:
		return nil, fmt.Errorf("%w: the layer %v has events; flows are decided at %v and %v", ErrInvalid, h.layer, LayerNetwork, LayerForward)
	case h.flags&(Drop|SendOnly) != 0:
		return nil, fmt.Errorf("%w: a handle with the flags %v receives no packets, so it has no flows to decide", ErrInvalid, h.flags&(Drop|SendOnly))
	case !ok:
		return nil, fmt.Errorf("%w: verdicts for flows", ErrNotSupported)
	}
	return f, nil
}

func (h *Handle) decideFlow(p *Packet, v flow.Verdict) error {
	f, err := h.flows(p)
	if err != nil {
		return err
	}
	s := h.single()
	defer h.singles.Put(s)
	s[0].Data, s[0].Addr = p.Data, p.Addr
	err = f.DecideFlow(s[:], v)
	s[0].Data = nil
	return err
}

// ForgetFlow ends the verdict of a packet's flow, in both directions: from the next packet on, the flow comes to the
// program again. The filter's counts of the flow (flow.Packets) start again, too. Only p.Data is used, so any packet of
// the flow will do. ForgetFlow reports whether the flow had a verdict. It fails with ErrInvalid for a packet that belongs
// to no flow, or net.ErrClosed.
func (h *Handle) ForgetFlow(p *Packet) (bool, error) {
	f, err := h.flows(p)
	if err != nil {
		return false, opError("forget flow", err)
	}
	had, err := f.ForgetFlow(p)
	return had, opError("forget flow", err)
}

// ForgetFlows is ForgetFlow for all flows of the handle at once.
func (h *Handle) ForgetFlows() error {
	f, err := h.flows(&Packet{})
	if err == nil {
		err = f.ForgetFlows()
	}
	return opError("forget flows", err)
}

// FlowVerdict is the fate of a flow's packets.
type FlowVerdict uint8

// The verdicts.
const (
	FlowUndecided = FlowVerdict(flow.Undecided) // they come to the program
	FlowAccepted  = FlowVerdict(flow.Accept)    // they go on
	FlowDropped   = FlowVerdict(flow.Drop)      // they are dropped
)

// String returns the verdict in a word.
func (v FlowVerdict) String() string {
	names := [...]string{"undecided", "accepted", "dropped"}
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("FlowVerdict(%d)", uint8(v))
}

// FlowStats counts the packets that met a verdict of their flow, that is, those after it. All fields are zero for a flow
// without a verdict. Packets count as they would be received: a TCP superpacket as one, unless the handle was opened
// WithSegments; all others as they are on the network. Bytes are those of IP packets.
type FlowStats struct {
	Verdict FlowVerdict

	Packets, Bytes         uint64 // in the direction of the packet passed to Flow
	BackPackets, BackBytes uint64 // in the other
}

// Flow returns the counters of a packet's flow. Only p.Data is used, so any packet of the flow will do. It fails as ForgetFlow does.
func (h *Handle) Flow(p *Packet) (FlowStats, error) {
	f, err := h.flows(p)
	if err != nil {
		return FlowStats{}, opError("flow", err)
	}
	r, way, ok, err := f.Flow(p)
	if err != nil || !ok {
		return FlowStats{}, opError("flow", err)
	}
	return FlowStats{
		Verdict: FlowVerdict(r.Verdict),
		Packets: r.Packets[way], Bytes: r.Bytes[way],
		BackPackets: r.Packets[1-way], BackBytes: r.Bytes[1-way],
	}, nil
}
