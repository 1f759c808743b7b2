package divert

import (
	"fmt"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Address describes a packet or event beyond its bytes; see package packet.
type Address = packet.Address

// Packet is a packet with its address, the element of batches; see package packet.
type Packet = packet.Packet

// Layer is the part of the network stack in which a handle works; see package packet.
type Layer = packet.Layer

// The layers.
const (
	LayerNetwork = packet.LayerNetwork // IP packets to and from this host
	LayerForward = packet.LayerForward // IP packets routed through this host
	LayerFlow    = packet.LayerFlow    // flows established and deleted
	LayerSocket  = packet.LayerSocket  // bind, connect, listen, accept, close
	LayerReflect = packet.LayerReflect // other handles opened and closed
)

// Event is the kind of a packet or event; see package packet.
type Event = packet.Event

// The events, with the layer that raises each.
const (
	EventPacket          = packet.EventPacket          // NETWORK, NETWORK_FORWARD
	EventFlowEstablished = packet.EventFlowEstablished // FLOW
	EventFlowDeleted     = packet.EventFlowDeleted     // FLOW
	EventSocketBind      = packet.EventSocketBind      // SOCKET
	EventSocketConnect   = packet.EventSocketConnect   // SOCKET
	EventSocketListen    = packet.EventSocketListen    // SOCKET
	EventSocketAccept    = packet.EventSocketAccept    // SOCKET
	EventSocketClose     = packet.EventSocketClose     // SOCKET
	EventReflectOpen     = packet.EventReflectOpen     // REFLECT
	EventReflectClose    = packet.EventReflectClose    // REFLECT
)

// Flag changes what a handle does; flags are or-ed. Their values are those of WINDIVERT_FLAG
// (specification: api.md 1.1 and 4).
type Flag uint64

// The flags.
const (
	Sniff     Flag = engine.FlagSniff     // the handle gets copies; the packets themselves go on undelayed
	Drop      Flag = engine.FlagDrop      // the kernel drops matching packets; receiving fails with ErrDropOnly
	RecvOnly  Flag = engine.FlagRecvOnly  // nothing can be sent
	SendOnly  Flag = engine.FlagSendOnly  // nothing can be received; matching packets still leave the stack
	NoInstall Flag = engine.FlagNoInstall // Windows: fail if the driver is not installed
	Fragments Flag = engine.FlagFragments // inbound fragments come one by one, instead of the reassembled datagram
)

// Priorities of handles: a packet meets the handles from the highest to the lowest.
const (
	HighestPriority = 30000
	LowestPriority  = -30000
)

// MaxBatch is the greatest number of packets that a batch call takes.
const MaxBatch = 255

// MaxPacket is the length of the longest possible packet, in bytes: an IPv6 header and 65535 bytes.
const MaxPacket = 65575

// How selects the half of a handle, or both, for Shutdown to end.
type How uint8

// The halves.
const (
	ShutdownRecv = How(engine.ShutdownRecv)
	ShutdownSend = How(engine.ShutdownSend)
	ShutdownBoth = How(engine.ShutdownBoth)
)

// options collects the settings of the With functions.
type options struct {
	wrong   error // the error about an argument that config cannot hold
	layer   Layer
	dialect filter.Dialect
	snaps   bool // WithSnapLength
	hangs   bool // WithPassOnHang or WithDropOnHang
	config  engine.Config
	sets    map[string]*filter.Set // by WithSet
	engine  engine.Opener

	dropWaits bool // see engine.DropWaits
}

// Option changes how Open opens a handle.
type Option func(*options)

// WithLayer opens the handle at a layer other than LayerNetwork.
func WithLayer(l Layer) Option { return func(o *options) { o.layer = l } }

// WithPriority gives the handle a priority, from LowestPriority to HighestPriority, instead of 0. Among
// handles of equal priority the newest counts as the highest.
func WithPriority(priority int16) Option { return func(o *options) { o.config.Priority = priority } }

// WithFlags sets flags.
func WithFlags(f Flag) Option { return func(o *options) { o.config.Flags |= uint64(f) } }

// WithFailOpen lets packets pass when the queue is full, instead of dropping them.
func WithFailOpen() Option { return func(o *options) { o.config.FailOpen = true } }

// WithProcessID makes the addresses of packets at LayerNetwork name the process (NetworkData.ProcessID). A filter that
// tests processId has the same effect. Open fails with ErrNoProcess where the process cannot be known: Linux needs eBPF
// programs on the root of the cgroup hierarchy, and Windows does not know it. At the layers with events, addresses always
// name it.
func WithProcessID() Option { return func(o *options) { o.config.Processes = true } }

// WithInbound makes Open fail with ErrNotSupported where Send could not inject packets inbound, or routed ones at
// LayerForward. Programs that are useless without such packets learn it early; without the option, Send fails: on Linux,
// new inbound packets need /dev/net/tun. Received packets can always be sent on.
func WithInbound() Option { return func(o *options) { o.config.Inbound = true } }

// MaxQueues is the greatest number of queues that a handle may have.
const MaxQueues = 16

// WithQueues spreads the flows of the handle over n queues, 1 to MaxQueues, instead of one. Then n goroutines can work
// side by side, each with its own Queue, and every flow keeps its order. The queues share the queue limits. Where the
// platform or the handle cannot have several queues, there is one.
func WithQueues(n int) Option { return func(o *options) { o.config.Queues = n } }

// The limits of the time for WithPassOnHang and WithDropOnHang.
const (
	MinHang = 100 * time.Millisecond
	MaxHang = time.Hour
)

// WithPassOnHang guards against a program that hangs. Once a packet has waited for d, MinHang to MaxHang, and the program
// has received nothing since the packet came, further matching packets pass unseen to the handles below, until the
// program receives again. A program that waits in a receive call does not hang; one that works on a batch for longer than
// d does. Receiving from any one of several queues counts.
//
// Packets already in the queue stay until they are received; those older than the queue time are dropped then. Until then
// they count against the socket buffer of a local sender, and TCP does not retransmit them. During a hang at most one
// packet in 17, and at most one in 2 d, is still queued: it wakes a program that waits after all.
//
// It needs programs in the kernel: where the interpreter decides, and on Windows, Open fails with ErrNotSupported. No
// packet waits for a handle with the flags Sniff, Drop or SendOnly, or at a layer with events: there Open fails with
// ErrInvalid.
func WithPassOnHang(d time.Duration) Option { return withHang(d, false) }

// WithDropOnHang is WithPassOnHang for programs that guard something: the packets are dropped, and their senders get no
// error. It excludes filters that count flows: Open and SetFilter fail with ErrNotSupported.
func WithDropOnHang(d time.Duration) Option { return withHang(d, true) }

func withHang(d time.Duration, drop bool) Option {
	return func(o *options) { o.config.Hang, o.hangs = engine.Hang{After: d, Drop: drop}, true }
}

// MaxBusyPoll is the longest time for WithBusyPoll.
const MaxBusyPoll = 10 * time.Millisecond

// WithBusyPoll makes receive calls that find no packet look again for d, at most MaxBusyPoll, before they sleep. The next
// packet then meets a program that is awake, which saves the wake-up. The price is up to d of processor time whenever no
// packet comes. On a busy machine, or with fewer processors than busy programs, it slows everything down. It is for
// programs that answer one packet after another. It works only where the kernel decides and packets are diverted; with
// several queues, only in the receive calls of a Queue.
func WithBusyPoll(d time.Duration) Option { return func(o *options) { o.config.BusyPoll = d } }

// WithCopiesInPlace lets the loop over Packets hand out copies of packets in the memory where the kernel wrote them,
// which saves another copy. Linux can do so where the kernel decides, at LayerNetwork; elsewhere the option changes
// nothing. Data of such packets is read-only: a write ends the program with a fault (SIGBUS) that it cannot recover from.
// Open therefore fails with ErrInvalid unless the handle has the flags Sniff and RecvOnly. Nothing else changes: the
// packet is valid in its round, even if the handle is closed meanwhile; Clone makes a copy to keep; other receive calls
// return copies of their own.
func WithCopiesInPlace() Option { return func(o *options) { o.config.InPlace = true } }

// MinSnapLength is the least length for WithSnapLength, in bytes: the longest headers without options.
const MinSnapLength = 64

// WithSnapLength makes receive calls return at most the first n bytes of each packet, MinSnapLength or more; where
// possible the kernel copies no more than that. It is for programs that look at headers only: accepting bulk traffic then
// costs a fraction. The IP header keeps the true length. Accept lets the whole packet go on. Send fails with
// ErrShortBuffer unless Data has the whole packet, and injecting needs all bytes too. The filter still sees whole
// packets. Events have no data to cut.
func WithSnapLength(n int) Option { return func(o *options) { o.config.Snap = n; o.snaps = true } }

// MaxFlowTable is the greatest size for WithFlowTable, in flows.
const MaxFlowTable = 1 << 22

// WithFlowTable makes the handle keep verdicts for at least n flows, 1 to MaxFlowTable, instead of 65,536. When there are
// more, a flow that has been silent for long makes way: its packets come to the program again. See AcceptFlow.
func WithFlowTable(n int) Option { return func(o *options) { o.config.FlowTable = n } }

// WithFlowIdle makes the verdict of a flow end after d without a packet; d is at least a millisecond. The defaults are 2 h and
// 4 min for TCP, 5 min for UDP and 1 min for ICMP echo. See AcceptFlow.
func WithFlowIdle(d time.Duration) Option {
	return func(o *options) {
		if d < time.Millisecond {
			o.wrong = fmt.Errorf("%w: flows end after %v without a packet; it must be a millisecond or more", ErrInvalid, d)
		}
		o.config.FlowIdle = d
	}
}

// WithSegments makes a handle see TCP as it is on the network: one packet for each segment. Without it, on Linux, TCP
// comes in the superpackets of the stack, up to 64 KiB or more, and tests of lengths, flags and payloads apply to those;
// all other protocols, UDP included, always come packet by packet. WithSegments costs as much as segmentation offload
// saves: each segment is queued, received and sent on by itself. Datagrams above the path's MTU stay whole, because the
// kernel fragments them behind the handles.
//
// Open fails with ErrNotSupported for a handle that sniffs where the interpreter decides or the layer is FORWARD: its
// copies are made before the kernel cuts. On Windows the driver delivers segments anyway. At layers with events the
// option has no effect.
func WithSegments() Option { return func(o *options) { o.config.Segments = true } }

// WithStrict compiles the filter in the strict dialect: WinDivert 2.2 to the letter.
func WithStrict() Option { return func(o *options) { o.dialect = filter.Strict } }

// Engine is the judge of which packets match: the kernel or the interpreter.
type Engine uint8

// The engines.
const (
	EngineAuto        = Engine(engine.ModeAuto)      // the kernel where it can, else the interpreter
	EngineKernel      = Engine(engine.ModeKernel)    // the kernel; Open fails where it cannot
	EngineInterpreter = Engine(engine.ModeInterpret) // the interpreter: every packet comes to user space, most go back at once
)

// WithEngine chooses the engine that decides which packets match.
func WithEngine(e Engine) Option { return func(o *options) { o.config.Mode = engine.Mode(e) } }

// WithDriver names the file of the signed WinDivert 2.2 driver, or its folder, in case Open has to install the driver.
// Only Windows uses it. Without it Open takes the path from the environment variable DIVERT_DRIVER, or else looks for
// WinDivert64.sys (32-bit Windows: WinDivert32.sys) next to the program, then next to the library that this package is
// built into.
func WithDriver(path string) Option { return func(o *options) { o.config.Driver = path } }

// Open opens a handle for the packets or events that match the filter, at LayerNetwork unless an option says otherwise.
// Matching packets wait for the program as soon as Open returns, so the program should begin to receive at once. The handle
// belongs to the network namespace of the calling thread.
//
// The filter is text of the filter language, or the object string of a compiled filter. Its named sets are empty, unless
// WithSet fills them.
//
// Open fails with a *filter.Error if the filter does not compile, with ErrInvalid for options that exclude each other, with
// os.ErrPermission without the rights (Linux: CAP_NET_ADMIN), or with ErrNotSupported where the system lacks something.
func Open(text string, opts ...Option) (*Handle, error) {
	o := newOptions(opts)
	if err := o.check(); err != nil {
		return nil, opError("open", err)
	}
	p, err := filter.Compile(text, o.layer, o.dialect)
	if err != nil {
		return nil, opError("open", err)
	}
	return o.open(p)
}

// OpenProgram is Open for a compiled filter, whose layer is the handle's. A nil program is ErrInvalid. OpenProgram only reads
// the program, which may serve several handles; they share its named sets.
func OpenProgram(p *filter.Program, opts ...Option) (*Handle, error) {
	if p == nil {
		return nil, opError("open", fmt.Errorf("%w: the program is nil; filter.Compile makes one", ErrInvalid))
	}
	o := newOptions(opts)
	o.layer = p.Layer()
	if err := o.check(); err != nil {
		return nil, opError("open", err)
	}
	return o.open(p)
}

// These functions are for packages of this module alone: diverttest brings an engine of its own, and the C interface
// needs receive calls that wait where those of Go fail.
func init() {
	engine.With = func(e engine.Opener) any { return Option(func(o *options) { o.engine = e }) }
	engine.DropWaits = func() any { return Option(func(o *options) { o.dropWaits = true }) }
	engine.Poll = func(h any, ps []Packet) (int, error) { return h.(*Handle).poll(ps) }
	engine.SendConst = func(h any, ps []Packet) (int, error) { return h.(*Handle).sendConst(ps) }
	engine.CutterOf = func(h any) engine.Cutter {
		c, _ := h.(*Handle).platform().(engine.Cutter)
		return c
	}
	engine.FollowerOf = func(h any) engine.Follower {
		f, _ := h.(*Handle).platform().(engine.Follower)
		return f
	}
	engine.GiveBack = func(h any, ps []Packet) { h.(*Handle).platform().Return(ps) }
}

func newOptions(opts []Option) *options {
	o := &options{config: engine.Config{Queues: 1, Limits: defaultLimits, FlowTable: flow.DefaultSize}, engine: openEngine}
	for _, opt := range opts {
		if opt != nil { // programs may pass nil for an option they leave out
			opt(o)
		}
	}
	return o
}

func (o *options) open(p *filter.Program) (*Handle, error) {
	p, err := o.withSets(p)
	if err != nil {
		return nil, opError("open", err)
	}
	o.config.Program = (*prog.Program)(p)
	e, err := o.engine(o.config)
	if err != nil {
		return nil, opError("open", err)
	}
	h := &Handle{
		engine: e, layer: o.layer, priority: o.config.Priority, flags: Flag(o.config.Flags), dialect: o.dialect,
		limits: o.config.Limits, snap: o.config.Snap, dropWaits: o.dropWaits,
	}
	h.keepSets(p)
	h.deadline.Init(e.Wake)
	return h, nil
}

// check applies the rules of the specification in its order (api.md 4 and 5).
func (o *options) check() error {
	if o.layer >= packet.NumLayers {
		return fmt.Errorf("%w: there is no layer %d", ErrInvalid, o.layer)
	}
	f := Flag(o.config.Flags)
	if unknown := f &^ engine.FlagsAll; unknown != 0 {
		return fmt.Errorf("%w: unknown flags %#x", ErrInvalid, uint64(unknown))
	}
	for _, pair := range [...]Flag{Sniff | Drop, RecvOnly | SendOnly} {
		if f&pair == pair {
			return fmt.Errorf("%w: the flags %v exclude each other", ErrInvalid, pair)
		}
	}
	if p := o.config.Priority; p < LowestPriority || p > HighestPriority {
		return fmt.Errorf("%w: priority %d is out of range (%d to %d)", ErrInvalid, p, LowestPriority, HighestPriority)
	}
	if missing := mandatory[o.layer] &^ f; missing != 0 {
		return fmt.Errorf("%w: the layer %v needs the flags %v", ErrInvalid, o.layer, missing)
	}
	if o.config.Processes && o.layer == LayerForward {
		return fmt.Errorf("%w: forwarded packets belong to no process of this host", ErrInvalid)
	}
	if o.config.Inbound && (f&RecvOnly != 0 || o.layer != LayerNetwork && o.layer != LayerForward) {
		return fmt.Errorf("%w: WithInbound is for handles that send packets", ErrInvalid)
	}
	if o.config.InPlace && f&(Sniff|RecvOnly) != Sniff|RecvOnly {
		return fmt.Errorf("%w: WithCopiesInPlace is for handles with the flags %v", ErrInvalid, Sniff|RecvOnly)
	}
	if q := o.config.Queues; q < 1 || q > MaxQueues {
		return fmt.Errorf("%w: %d queues; 1 to %d are possible", ErrInvalid, q, MaxQueues)
	}
	if n := o.config.FlowTable; n < 1 || n > MaxFlowTable {
		return fmt.Errorf("%w: a table of %d flows; 1 to %d are possible", ErrInvalid, n, MaxFlowTable)
	}
	if o.snaps && o.config.Snap < MinSnapLength {
		return fmt.Errorf("%w: snap length %d; it must be %d bytes or more", ErrInvalid, o.config.Snap, MinSnapLength)
	}
	if err := o.checkHang(); err != nil {
		return err
	}
	if d := o.config.BusyPoll; d < 0 || d > MaxBusyPoll {
		return fmt.Errorf("%w: busy polling for %v; 0 to %v are possible", ErrInvalid, d, MaxBusyPoll)
	}
	if err := checkLimits(&o.config.Limits); err != nil {
		return err
	}
	if m := o.config.Mode; m > engine.ModeInterpret {
		return fmt.Errorf("%w: there is no engine %d", ErrInvalid, m)
	}
	return o.wrong
}

// checkHang checks the guard for programs that hang.
func (o *options) checkHang() error {
	switch d := o.config.Hang.After; {
	case !o.hangs:
		return nil
	case d < MinHang || d > MaxHang:
		return fmt.Errorf("%w: a program hangs after %v; %v to %v are possible", ErrInvalid, d, MinHang, MaxHang)
	case Flag(o.config.Flags)&(Sniff|Drop|SendOnly) != 0 || o.layer != LayerNetwork && o.layer != LayerForward:
		return fmt.Errorf("%w: WithPassOnHang and WithDropOnHang are for handles whose packets wait for the program", ErrInvalid)
	}
	return nil
}

// mandatory holds the flags that each layer requires.
var mandatory = [packet.NumLayers]Flag{
	LayerFlow:    Sniff | RecvOnly,
	LayerSocket:  RecvOnly,
	LayerReflect: Sniff | RecvOnly,
}
