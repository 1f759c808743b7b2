package divert

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
)

// Handle is an open handle; Open makes one. The zero Handle is useless: its methods fail with ErrInvalid. The methods may
// be called from several goroutines at once; each packet comes to one reader, in order.
type Handle struct {
	engine   engine.Handle
	layer    Layer
	priority int16
	flags    Flag
	dialect  filter.Dialect
	snap     int // 0: packets are received whole

	dropWaits bool // a receive call on a handle that drops waits instead of failing; see engine.DropWaits

	receiving sync.RWMutex // held for reading by receive calls; Close waits for them
	deadline  engine.Deadline
	recvDown  atomic.Bool // Shutdown has ended the receive half
	closed    atomic.Bool // Close has begun
	closing   sync.Mutex  // held by Close

	filtering sync.Mutex // held while the filter is exchanged

	mu     sync.Mutex // guards limits and sets
	limits engine.Limits
	sets   map[string]*filter.Set // of this filter and earlier ones, by name

	left leftovers

	singles sync.Pool // of *[1]Packet
}

// platform returns the engine. The zero Handle gets one that fails every call.
func (h *Handle) platform() engine.Handle {
	if h.engine == nil {
		return unopened{}
	}
	return h.engine
}

// Layer returns the handle's layer.
func (h *Handle) Layer() Layer { return h.layer }

// Priority returns the handle's priority.
func (h *Handle) Priority() int16 { return h.priority }

// Flags returns the handle's flags.
func (h *Handle) Flags() Flag { return h.flags }

// Description tells people how the handle is served.
func (h *Handle) Description() string { return h.platform().Description() }

// single returns a batch of one packet; it goes back with h.singles.Put.
func (h *Handle) single() *[1]Packet {
	if s, ok := h.singles.Get().(*[1]Packet); ok {
		return s
	}
	return new([1]Packet)
}

// Send lets a received packet go on with the bytes of p.Data, or injects a new packet. p.Data must be exactly one IP packet.
//
// If p.Addr came with a packet that still waits for its verdict, that packet goes on, once, past the handles that have
// seen it. Otherwise Send injects p as a new packet: on the way out if p.Addr.Outbound is set, else as if it had come in
// on the interface in its address. Send also injects a received packet that is turned round or sent elsewhere, unless on
// Linux it leaves by the same next hop (docs/linux.md, "Another destination").
//
// Send computes, in p.Data, the checksums that the address marks as missing, and decrements the TTL of an impostor
// (specification: api.md 8). On Linux the kernel computes the checksum of an outgoing TCP superpacket. For a received
// packet Send does more than package packet: on a source route it computes the checksum for the final destination, and it
// computes SCTP's if both TCPChecksum and UDPChecksum are false. Send keeps no reference to p. On Linux, a received
// packet whose bytes and checksum flags are unchanged goes on as with Accept: nothing is copied or computed.
//
// It fails with ErrShortBuffer or ErrInvalid if p.Data is not a whole packet, ErrHopLimit, ErrTooLarge, ErrNoSuchDevice,
// ErrRecvOnly, ErrShutdown, net.ErrClosed, or the system's error.
func (h *Handle) Send(p *Packet) error {
	if p == nil {
		return opError("send", errNilPacket)
	}
	s := h.single()
	defer h.singles.Put(s)
	s[0].Data, s[0].Addr = p.Data, p.Addr
	_, err := h.platform().Send(s[:])
	s[0].Data = nil
	return opError("send", err)
}

// SendBatch sends packets as Send does, at most MaxBatch, with few system calls. It returns the number accepted. A packet
// that fails does not hold up the others; the error is the last failure's.
func (h *Handle) SendBatch(ps []Packet) (int, error) {
	if len(ps) > MaxBatch {
		return 0, opError("send", tooMany(len(ps)))
	}
	n, err := h.platform().Send(ps)
	return n, opError("send", err)
}

// sendConst is SendBatch that leaves the memory of the packets' Data alone; see engine.SendConst.
func (h *Handle) sendConst(ps []Packet) (int, error) {
	if e, ok := h.platform().(engine.ConstSender); ok {
		n, err := e.SendConst(ps)
		return n, opError("send", err)
	}
	for i := range ps {
		p := &ps[i]
		p.Data = append(p.Buffer(len(p.Data))[:0], p.Data...)
	}
	return h.SendBatch(ps)
}

// Accept lets a received packet go on as it was, whatever its Data is now; nothing is copied back to the kernel. If the
// packet no longer waits, Accept injects Data as Send would. On Windows it always injects: the driver keeps nothing of a
// received packet. If such a packet was cut on its way to the program (WithSnapLength, a short buffer of Recv), the
// handle keeps it whole as long as the queue's limits allow.
func (h *Handle) Accept(p *Packet) error {
	if p == nil {
		return opError("accept", errNilPacket)
	}
	s := h.single()
	defer h.singles.Put(s)
	s[0].Data, s[0].Addr = p.Data, p.Addr
	_, err := h.platform().Accept(s[:])
	s[0].Data = nil
	return opError("accept", err)
}

// AcceptBatch accepts packets as Accept does, at most MaxBatch, with few system calls. It returns the number that went
// on; the error is the last failure's.
func (h *Handle) AcceptBatch(ps []Packet) (int, error) {
	if len(ps) > MaxBatch {
		return 0, opError("accept", tooMany(len(ps)))
	}
	n, err := h.platform().Accept(ps)
	return n, opError("accept", err)
}

// Drop ends a received packet at once. A packet that is neither sent nor dropped ends too, but Linux keeps a packet of
// this host for up to a second, in case the program still sends it. Until then it counts against its sender's socket
// buffer, and TCP does not retransmit it. Drop does nothing to packets that were sent, copied or never received. It works
// on handles that only receive, and after ShutdownSend. It fails with ErrInvalid if p is nil, or with net.ErrClosed.
func (h *Handle) Drop(p *Packet) error {
	if p == nil {
		return opError("drop", errNilPacket)
	}
	s := h.single()
	defer h.singles.Put(s)
	s[0].Addr = p.Addr
	return h.drop(s[:])
}

// DropBatch drops packets as Drop does, at most MaxBatch, with few system calls.
func (h *Handle) DropBatch(ps []Packet) error {
	if len(ps) > MaxBatch {
		return opError("drop", tooMany(len(ps)))
	}
	return h.drop(ps)
}

func (h *Handle) drop(ps []Packet) error {
	if d, ok := h.platform().(engine.Dropper); ok {
		return opError("drop", d.Drop(ps))
	}
	if h.closed.Load() {
		return opError("drop", net.ErrClosed)
	}
	return nil // this engine keeps nothing of received packets
}

func tooMany(n int) error {
	return fmt.Errorf("%w: a batch of %d packets; at most %d", ErrInvalid, n, MaxBatch)
}

// Shutdown ends receiving, sending or both, for good; the handle stays open, and still needs Close. To stop without
// losing a packet, call Shutdown(ShutdownRecv), go on receiving until io.EOF, send every packet that is to go on, then
// Close.
//
// After ShutdownRecv the handle captures nothing: later packets pass. Queued packets can still be received, and received
// ones sent; once the queue is empty, every receive call returns io.EOF, waiting ones too. After ShutdownSend, Send and
// Accept fail with ErrShutdown, so received packets can only be dropped. Shutting down a half twice changes nothing.
// Shutdown fails with ErrInvalid, net.ErrClosed, or the system's error.
func (h *Handle) Shutdown(how How) error {
	if how < ShutdownRecv || how > ShutdownBoth {
		return opError("shutdown", fmt.Errorf("%w: there is no way %d to shut down", ErrInvalid, how))
	}
	err := h.platform().Shutdown(engine.How(how))
	if err == nil && how&ShutdownRecv != 0 {
		h.recvDown.Store(true)
	}
	return opError("shutdown", err)
}

// Close stops capturing and releases the handle at once; Shutdown describes the stop that first empties the queue. Close
// lets packets go on as they were if the program has not seen them: those in the queue, unless older than the queue time,
// and those that an iteration has received and not handed out. Packets that the program was given and has not sent are
// lost, and so are queued copies and events.
//
// Waiting receivers return net.ErrClosed, and so does a second Close, which waits for the first. Stats still works. If
// Close fails with another error, the handle is closed all the same, and everything that could be released is.
func (h *Handle) Close() error {
	if h.engine == nil {
		return opError("close", errUnopened)
	}
	h.closing.Lock()
	defer h.closing.Unlock()
	if h.closed.Swap(true) {
		return opError("close", net.ErrClosed)
	}
	h.deadline.Close() // ends the waits of receivers
	h.receiving.Lock() // until the last of them has left
	defer h.receiving.Unlock()
	if ps := h.left.sweep(); len(ps) > 0 {
		h.platform().Return(ps)
	}
	return opError("close", h.platform().Close())
}

// SetFilter replaces the filter, in the handle's dialect. Every packet meets the old filter or the new one. If SetFilter
// fails, the old filter stays in force. The handle's named sets keep their names, see Set; SetFilter fails with
// filter.ErrSetKind if the new filter needs one of them in the other kind.
func (h *Handle) SetFilter(text string) error {
	h.filtering.Lock()
	defer h.filtering.Unlock()
	p, err := filter.Compile(text, h.layer, h.dialect)
	if err == nil {
		p, err = p.WithSets(h.heldSets())
	}
	return opError("set filter", h.exchange(p, err))
}

// SetProgram is SetFilter for a compiled filter of the handle's layer. A program of another layer, or nil, is ErrInvalid.
// SetProgram only reads the program, which may serve several handles. Its named sets come with it and become the handle's
// sets of their names.
func (h *Handle) SetProgram(p *filter.Program) error {
	h.filtering.Lock()
	defer h.filtering.Unlock()
	var err error
	switch {
	case p == nil:
		err = fmt.Errorf("%w: the program is nil; filter.Compile makes one", ErrInvalid)
	case p.Layer() != h.layer:
		err = fmt.Errorf("%w: a filter of layer %v for a handle of layer %v", ErrInvalid, p.Layer(), h.layer)
	}
	return opError("set filter", h.exchange(p, err))
}

// exchange puts a filter in force, or returns the error that came with it.
func (h *Handle) exchange(p *filter.Program, err error) error {
	if err == nil {
		err = h.platform().SetFilter((*prog.Program)(p))
	}
	if err == nil {
		h.keepSets(p)
	}
	return err
}

// Stats counts a handle's packets or events since it was opened. Each packet that matched is in one place:
//
//	Matched = Received + Waiting + Dropped + DroppedFull + DroppedOld + DroppedLong + Passed + Lost + FlowAccepted + FlowDropped +
//		HangPassed + HangDropped
//
// Received packets are Reinjected (they went on as they came or with other bytes), Abandoned (they are gone), or still with the
// program. Foreign is not part of the sum: those packets did not match.
type Stats struct {
	Matched     uint64 // matched the filter
	Received    uint64 // returned by receive calls, or taken by an iteration that goes on
	Waiting     uint64 // in the queue now
	Dropped     uint64 // dropped by a handle that drops
	DroppedFull uint64 // lost because the queue was full
	DroppedOld  uint64 // lost because they had waited longer than the queue time
	DroppedLong uint64 // lost because they were longer than the queue can carry
	Passed      uint64 // went on unseen: the queue was full and the handle fails open, the handle was closing, or the kernel does not queue such packets
	Lost        uint64 // lost in the kernel for an unknown reason: it had no memory, or refused to queue the packet

	FlowAccepted      uint64 // went on by the verdict of their flow, see AcceptFlow; on a handle that sniffs: were not copied
	FlowAcceptedBytes uint64 // and their bytes, IP headers included
	FlowDropped       uint64 // were dropped by the verdict of their flow, see DropFlow
	FlowDroppedBytes  uint64

	HangPassed  uint64 // went on because the program hung, see WithPassOnHang
	HangDropped uint64 // were dropped because the program hung, see WithDropOnHang

	Reinjected uint64 // received packets that were sent on
	Abandoned  uint64 // received packets that are gone: dropped by Drop, or not sent on for too long
	Injected   uint64 // new packets sent
	Failed     uint64 // sends that were refused, also because the packet was gone: its network interface went down
	Foreign    uint64 // packets that another program's rules led to the handle's queue; they went on unreceived
}

// Stats returns the counters. Each is exact, but while packets flow they are not a snapshot of one instant. After Close
// they are final.
func (h *Handle) Stats() (Stats, error) {
	waiting := h.left.count()
	s, err := h.platform().Stats()
	waiting = min(waiting, s.Received) // all of them, unless Close has given them back meanwhile
	s.Received -= waiting
	s.Waiting += waiting
	return Stats(s), opError("stats", err)
}

var errNilPacket = fmt.Errorf("%w: the packet is nil", ErrInvalid)
