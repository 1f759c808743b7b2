// Package engine is the line between a handle and the platform that serves it: the interface that the root package
// calls and each platform's folder implements.
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

// Mode says which of a platform's ways to decide which packets match is used.
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
	Queues   int  // queues that flows are shared out to, at least 1; platforms without them take no more
	Snap     int  // bytes of each packet that the caller wants at most, 0 for all; a platform may receive more
	Segments bool // TCP packets too come as they are on the network, not several together
	Mode     Mode
	Inbound  bool          // opening fails where packets cannot be injected inbound
	InPlace  bool          // iterations may borrow, see Lender
	BusyPoll time.Duration // how long receives look again before they wait, 0: not at all

	FlowTable int           // flows with a verdict to keep at least, see Flows
	FlowIdle  time.Duration // how long a verdict lasts without a packet, 0: by protocol

	Processes bool   // addresses at the layer NETWORK are to have the process
	Driver    string // Windows: path of the driver file, or of its folder; empty to look for it
}

// Hang says what becomes of packets that match while the program does not receive: when one has waited for a time, those that
// come after it are not queued.
type Hang struct {
	After time.Duration // 0: they are
	Drop  bool          // they are dropped, else they pass
}

// How says which half of a handle Shutdown ends, with the values of WINDIVERT_SHUTDOWN.
type How uint8

// The halves.
const (
	ShutdownRecv How = 1
	ShutdownSend How = 2
	ShutdownBoth How = 3
)

// Handle is an open handle of a platform. All methods may be called from several goroutines.
type Handle interface {
	// Recv waits for packets or events, no longer than w, and fills 1 to len(ps) of ps, which is not empty. It fails
	// with ErrInterrupted when w has ended and nothing is there, and with io.EOF when the receive half is shut down and nothing is left.
	// The handle was not opened to send only.
	Recv(w Wait, ps []packet.Packet) (int, error)
	// Wake makes receive calls that wait look whether their Wait has ended. It may be called at any time, also after
	// Close, and holds nobody up.
	Wake()
	// Return gives back packets or events that Recv has returned and nobody was given: packets go on as they were,
	// unless they are copies, and count as passed instead of received. It works after Shutdown, and on handles that
	// cannot send.
	Return(ps []packet.Packet)
	// Send injects packets, or lets the ones that they were received as go on with the bytes of ps.
	// It returns how many were accepted; the error is the last one's that failed.
	Send(ps []packet.Packet) (int, error)
	// Accept lets received packets go on as they were.
	Accept(ps []packet.Packet) (int, error)
	Shutdown(how How) error
	// Close lets waiting packets go on. No receive call is under way when it is called, and none begins afterwards. It
	// gives up every part of the handle, also if one fails; a second call fails with net.ErrClosed.
	Close() error
	SetLimits(Limits) error
	SetFilter(*prog.Program) error
	Stats() (Stats, error)
	// Description says how the handle is served, for people.
	Description() string
}

// Opener opens a handle.
type Opener func(Config) (Handle, error)

// With returns a divert.Option that has handles opened by an engine other than the platform's. Package divert sets
// it, so that package diverttest can use it without every program having it before its eyes.
var With func(Opener) any

// DropWaits returns a divert.Option for the C interface, whose callers wait when they receive from a handle that
// drops, as those of the original do (specification: api.md 6); in Go they are told at once. Package divert sets it.
var DropWaits func() any

// Poll is RecvBatch of a *divert.Handle without waiting, for the C interface: it fails with ErrInterrupted where RecvBatch
// would wait. Package divert sets it.
var Poll func(h any, ps []packet.Packet) (int, error)

// GiveBack is Handle.Return of a *divert.Handle, for packets that the C interface has received and no caller was given.
// Package divert sets it.
var GiveBack func(h any, ps []packet.Packet)

// SendConst is SendBatch of a *divert.Handle that leaves the packets' Data alone, for the C interface, whose callers' memory is
// theirs: what Send would write goes into a copy, in the Packet's own memory. Package divert sets it.
var SendConst func(h any, ps []packet.Packet) (int, error)

// ConstSender is a Handle that makes these copies of the packets that need one only.
type ConstSender interface {
	SendConst(ps []packet.Packet) (int, error)
}

// Dropper is a Handle for which received packets take a place until they are sent, dropped or given up.
type Dropper interface {
	// Drop ends packets that Recv has returned, and does nothing about others. They count as abandoned. It works after
	// Shutdown, and on handles that cannot send; after Close it fails with net.ErrClosed.
	Drop(ps []packet.Packet) error
}

// Cutter is a Handle that can be made to see TCP in segments later than from the start, for the C interface, which learns only
// from receive calls that a program's buffers are short. The filter decides on TCP as the stack has it all the same.
type Cutter interface {
	// Cut makes packets that are captured from now on come in segments.
	Cut() error
	// Again has superpackets that Recv has returned, from before, pass the handle once more instead of being returned. It moves the
	// other packets to the front of ps and returns how many they are. Copies stay as they are: there is nothing that could pass again.
	Again(ps []packet.Packet) int
}

// CutterOf returns the Cutter of a *divert.Handle, nil if its platform has none. Package divert sets it.
var CutterOf func(h any) Cutter

// Follower is a Handle that keeps the interfaces known which programs beside its own ask for, for users that decide on what they receive
// by several filters.
type Follower interface {
	// Follow fills the sets of the program's interfaces, and keeps them current until the handle closes.
	Follow(p *prog.Program) error
}

// FollowerOf returns the Follower of a *divert.Handle, nil if its platform has none. Package divert sets it.
var FollowerOf func(h any) Follower

// Keeper is a Handle that itself has nothing any more of a packet that Recv returned. Keep tells it of one, whole, of which
// the program will get a part: it keeps a copy, for Accept.
type Keeper interface {
	Keep(p *packet.Packet)
}

// Lender is a Handle that can hand out copies of packets where the kernel wrote them.
type Lender interface {
	// Lend is Recv, but if it says that it has lent, Data of some packets lies in memory that can only be read, and is the handle's again
	// with GiveBack. It stays until then also if the handle closes. Until then Lend lends nobody else, and Recv goes on as it does.
	// It lends nothing unless the handle was opened so (Config.InPlace).
	Lend(w Wait, ps []packet.Packet) (n int, lent bool, err error)
	// GiveBack ends what a call of Lend has lent. It waits for nobody, and may be called after Close.
	GiveBack()
}

// Queues is a Handle whose flows are shared out to several queues.
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
	Passed      uint64 // went on unseen: the queue was full and the handle fails open, the handle was closing, or the kernel refuses to queue such a packet
	Lost        uint64 // lost in the kernel, which does not say why: it had no memory, or would not queue this packet

	FlowAccepted      uint64 // went on by the verdict of their flow, see AcceptFlow; of a handle that sniffs: were not copied
	FlowAcceptedBytes uint64 // and their bytes, IP headers included
	FlowDropped       uint64 // were dropped by the verdict of their flow, see DropFlow
	FlowDroppedBytes  uint64

	HangPassed  uint64 // went on because the program had not received for long, see WithPassOnHang
	HangDropped uint64 // were dropped because of that, see WithDropOnHang

	Reinjected uint64 // received packets that were sent on
	Abandoned  uint64 // received packets that are gone: dropped by Drop, or not sent on for too long
	Injected   uint64 // packets sent that were not received ones
	Failed     uint64 // sends that were refused, also because the packet was gone: its network interface went down
	Foreign    uint64 // packets that another program's rules led to the handle's queue; they went on, and nobody received them
}

// Accounted returns how many packets that matched are known to be in some place.
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
