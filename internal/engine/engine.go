// Package engine is the interface between a handle and its platform: the root package calls it, each platform's folder
// implements it.
package engine

import (
	"errors"
	"time"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Flags of a handle, with the values of WINDIVERT_FLAG (specification: api.md 1.1).
const (
	FlagSniff     = 0x0001
	FlagDrop      = 0x0002
	FlagRecvOnly  = 0x0004
	FlagSendOnly  = 0x0008
	FlagNoInstall = 0x0010
	FlagFragments = 0x0020
	FlagsAll      = 0x003f
)

// Limits bound a handle's queue.
type Limits struct {
	Length int           // packets or events
	Time   time.Duration // older items are dropped
	Size   int           // bytes
}

// Mode is a way to decide which packets match.
type Mode uint8

// The modes.
const (
	ModeAuto      Mode = iota // the kernel decides where it can, else the interpreter
	ModeKernel                // the kernel decides, or Open fails
	ModeInterpret             // the interpreter decides
)

// Config has the settings of a handle. The caller has checked it against the specification.
type Config struct {
	Program  *prog.Program
	Priority int16
	Flags    uint64
	Limits   Limits
	FailOpen bool // packets that do not fit into the queue go on instead of being lost
	Hang     Hang
	Queues   int  // queues that share the flows, at least 1; some platforms have only one
	Snap     int  // bytes of each packet for the caller, 0 for all; a platform may receive more
	Segments bool // TCP too comes as packets of the network, not as superpackets
	Mode     Mode
	Inbound  bool          // Open fails if packets cannot be injected inbound
	InPlace  bool          // iterations may borrow, see Lender
	BusyPoll time.Duration // time for which receive calls poll before they wait

	FlowTable int           // least number of flows with a verdict to keep, see Flows
	FlowIdle  time.Duration // lifetime of a verdict without a packet, 0: by protocol

	Processes bool   // addresses at the layer NETWORK must have the process
	Driver    string // Windows: path of the driver file, or of its folder; empty to look for it
}

// Hang is the treatment of matching packets while the program does not receive: once a packet has waited for a time,
// later ones are not queued.
type Hang struct {
	After time.Duration // 0: they are always queued
	Drop  bool          // packets not queued are dropped, else they pass
}

// How selects the halves of a handle to shut down, with the values of WINDIVERT_SHUTDOWN.
type How uint8

// The halves.
const (
	ShutdownRecv How = 1
	ShutdownSend How = 2
	ShutdownBoth How = 3
)

// Handle is an open handle of a platform. All methods may be called from several goroutines.
type Handle interface {
	// Recv waits for packets or events, no longer than w, and fills 1 to len(ps) of ps, which is not empty. It fails with
	// ErrInterrupted when w ends without a packet, and with io.EOF when the receive half is shut down and the queue is
	// empty. It is not called on handles that only send.
	Recv(w Wait, ps []packet.Packet) (int, error)
	// Wake makes waiting receive calls check whether their Wait has ended. It may be called at any time, even after
	// Close, and does not block.
	Wake()
	// Return gives back packets or events that Recv has returned and that were not handed out: packets go on as they
	// were, unless they are copies, and count as passed instead of received. It works after Shutdown, and on handles that
	// cannot send.
	Return(ps []packet.Packet)
	// Send injects packets; received packets go on with the bytes of ps. It returns the number accepted; the error is the
	// last failure's.
	Send(ps []packet.Packet) (int, error)
	// Accept lets received packets go on as they were.
	Accept(ps []packet.Packet) (int, error)
	Shutdown(how How) error
	// Close lets waiting packets go on. No receive call runs when it is called, and none begins afterwards. It releases
	// every part of the handle, even if one fails; a second call fails with net.ErrClosed.
	Close() error
	SetLimits(Limits) error
	SetFilter(*prog.Program) error
	Stats() (Stats, error)
	// Description tells people how the handle is served.
	Description() string
}

// Opener opens a handle.
type Opener func(Config) (Handle, error)

// With returns a divert.Option that opens handles by another engine than the platform's. Package divert sets it, so that
// package diverttest can use it without an exported option for every program.
var With func(Opener) any

// DropWaits returns a divert.Option for the C interface: receive calls on a handle that drops wait, as in the original
// (specification: api.md 6), where those of Go fail at once. Package divert sets it.
var DropWaits func() any

// Poll is RecvBatch of a *divert.Handle without waiting, for the C interface: it fails with ErrInterrupted where RecvBatch
// would wait. Package divert sets it.
var Poll func(h any, ps []packet.Packet) (int, error)

// GiveBack is Handle.Return of a *divert.Handle, for packets that the C interface has received and not handed out.
// Package divert sets it.
var GiveBack func(h any, ps []packet.Packet)

// SendConst is SendBatch of a *divert.Handle that leaves the packets' Data alone. It is for the C interface, which must
// not write to its callers' memory: changes go into a copy, in the Packet's own memory. Package divert sets it.
var SendConst func(h any, ps []packet.Packet) (int, error)

// ConstSender is a Handle that makes these copies only for packets that need one.
type ConstSender interface {
	SendConst(ps []packet.Packet) (int, error)
}

// Dropper is a Handle that keeps received packets until they are sent, dropped or given up.
type Dropper interface {
	// Drop ends packets that Recv has returned, and ignores others. They count as abandoned. It works after Shutdown, and
	// on handles that cannot send; after Close it fails with net.ErrClosed.
	Drop(ps []packet.Packet) error
}

// Cutter is a Handle that can switch to segments of TCP after it was opened. It is for the C interface, which learns only
// from receive calls that a program's buffers are short. The filter still decides on TCP as the stack has it.
type Cutter interface {
	// Cut makes packets captured from now on come in segments.
	Cut() error
	// Again makes superpackets that Recv has returned, from before Cut, pass the handle once more. It moves the other
	// packets to the front of ps and returns their number. Copies stay, because they cannot pass again.
	Again(ps []packet.Packet) int
}

// CutterOf returns the Cutter of a *divert.Handle, nil if its platform has none. Package divert sets it.
var CutterOf func(h any) Cutter

// Follower is a Handle that also keeps the interfaces in other programs current, for users that decide on received
// packets by several filters.
type Follower interface {
	// Follow fills the sets of the program's interfaces, and keeps them current until the handle closes.
	Follow(p *prog.Program) error
}

// FollowerOf returns the Follower of a *divert.Handle, nil if its platform has none. Package divert sets it.
var FollowerOf func(h any) Follower

// Keeper is a Handle whose platform forgets a packet once Recv has returned it. Keep gets a whole packet that the program
// will get only in part, and copies it for Accept.
type Keeper interface {
	Keep(p *packet.Packet)
}

// Lender is a Handle that can hand out copies of packets in the memory where the kernel wrote them.
type Lender interface {
	// Lend is Recv, but if lent is true, Data of some packets lies in read-only memory that the handle gets back with
	// GiveBack. The memory lasts until then, even if the handle closes. Until then Lend lends nothing else, and Recv
	// works as usual. Lend lends only if Config.InPlace is set.
	Lend(w Wait, ps []packet.Packet) (n int, lent bool, err error)
	// GiveBack returns the memory of a call of Lend. It does not block, and may be called after Close.
	GiveBack()
}

// Queues is a Handle with several queues that share its flows.
type Queues interface {
	Queues() int
	// RecvQueue is Recv for the packets of one queue.
	RecvQueue(queue int, w Wait, ps []packet.Packet) (int, error)
	// QueueOf returns the queue of a packet that Recv has returned.
	QueueOf(p *packet.Packet) int
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
	Received    uint64 // returned by receive calls
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

// Accounted returns the number of matching packets whose fate or place is known.
func (s *Stats) Accounted() uint64 {
	return s.Received + s.Waiting + s.Dropped + s.DroppedFull + s.DroppedOld + s.DroppedLong + s.Passed + s.Lost +
		s.FlowAccepted + s.FlowDropped + s.HangPassed + s.HangDropped
}

// The errors that platforms return, besides those of net, io and os.
var (
	ErrNotSupported = errors.New("not supported on this system")
	ErrInvalid      = errors.New("invalid argument")
	ErrShortBuffer  = errors.New("buffer too small")
	ErrShutdown     = errors.New("the sending half of the handle is shut down")
	ErrHopLimit     = errors.New("the packet of another program has reached the end of its hop limit")
	ErrTooLarge     = errors.New("packet too large")
	ErrNoSuchDevice = errors.New("no such network interface")
	ErrReceiveOnly  = errors.New("the handle was opened to receive only")
	ErrSendOnly     = errors.New("the handle was opened to send only")
	ErrDropOnly     = errors.New("the handle was opened to drop only: nothing can be received from it; Stats counts the dropped packets")
	ErrNoProcess    = errors.New("the process of a packet is not known here")
	ErrRulesGone    = errors.New("another program has removed the handle's rules from the kernel")
)
