//go:build linux

package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// Types and attributes of linux/netfilter/nfnetlink_queue.h that x/sys does not name.
const (
	msgPacket       = 0
	msgVerdict      = 1
	msgConfig       = 2
	msgVerdictBatch = 3

	attrPacketHdr  = 1
	attrVerdictHdr = 2
	attrTimestamp  = 4
	attrInDev      = 5
	attrOutDev     = 6
	attrPhysOutDev = 8
	attrPayload    = 10
	attrCapLen     = 13
	attrSKBInfo    = 14
	attrPriority   = 21 // kernel 5.18

	cfgCmd    = 1
	cfgParams = 2
	cfgMaxLen = 3
	cfgMask   = 4
	cfgFlags  = 5

	cmdBind  = 1
	copyMeta = 1 // NFQNL_COPY_META: nothing of the packet
	copyMode = 2 // NFQNL_COPY_PACKET

	flagFailOpen = 1 << 0
	flagGSO      = 1 << 2
)

// MaxPayload is the longest packet the kernel hands over whole or takes back, in bytes: an
// attribute's length has 16 bits and counts its own header.
const MaxPayload = 0xffff - nfnl.AttrLen

// BufferSize is the size of a slot that holds any message of a queue, in bytes.
const BufferSize = 66 << 10

// Options of a queue.
type Options struct {
	Snap     int    // the most bytes of each packet that are handed over, 0 for all; Pair.Single ignores it
	MaxLen   uint32 // the most packets that may wait for a verdict; the kernel refuses more
	Discard  bool   // the kernel drops every packet before it copies any of it; the sender gets no error
	Cuts     bool   // every packet goes on at once, superpackets (GSO) as the packets that the kernel cuts them into; none comes here
	FailOpen bool   // packets that do not fit go on instead of being dropped
	RcvBuf   int    // socket receive buffer in bytes
}

// Queue is a queue bound by this process. It ends with Close or with the process; the kernel then
// drops packets that still wait for a verdict.
type Queue struct {
	*nfnl.Conn
	num    uint16
	single bool        // the kernel cuts packets that are to be cut (GSO) before it queues them, and finishes their checksums
	second bool        // it shares the socket of another queue
	cuts   atomic.Bool // the kernel cuts packets in this one, too; see Cut
}

// Pair is two queues of one socket, which keeps the order of their packets: each message names its queue.
type Pair struct {
	Whole  *Queue // packets are handed over as they are, also those that are to be cut later (GSO)
	Single *Queue // the kernel cuts those first: each segment comes, and goes on, as a packet of its own
}

// Close closes the queue. The first queue of a socket closes the socket too.
func (q *Queue) Close() error {
	if q.second {
		return nil
	}
	return q.Conn.Close()
}

// Queue numbers are taken from the upper half: people number theirs from 0 up.
const (
	firstNum = 0x8000
	numNums  = 0x8000
)

// Open binds a queue that is free in the namespace.
func Open(o Options) (*Queue, error) {
	qs, err := openGroup(1, o)
	if err != nil {
		return nil, err
	}
	return qs[0], nil
}

// OpenPairs binds n pairs of queues. Each queue has the limits.
func OpenPairs(n int, o Options) (pairs []Pair, err error) {
	qs, err := openGroup(2*n, o)
	for i := 0; i+1 < len(qs); i += 2 {
		pairs = append(pairs, Pair{Whole: qs[i], Single: qs[i+1]})
	}
	return pairs, err
}

// openGroup binds n queues with consecutive numbers; every second one is the second of its socket.
func openGroup(n int, o Options) ([]*Queue, error) {
	// A random start makes two openers unlikely to try the same numbers.
	start := rand.IntN(numNums)
	var err error
	for try := range numNums / n {
		base := firstNum + (start+try*n)%(numNums-n+1)
		var qs []*Queue
		if qs, err = openFrom(uint16(base), n, o); err == nil {
			return qs, nil
		}
		if !errors.Is(err, unix.EBUSY) && !inUse(err, try) {
			break
		}
	}
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("bind a netfilter queue: %w (needs CAP_NET_ADMIN)", err)
	}
	return nil, fmt.Errorf("bind a netfilter queue: %w", err)
}

// openFrom binds n queues from base on, or none.
func openFrom(base uint16, n int, o Options) (qs []*Queue, err error) {
	for i := range uint16(n) {
		q := &Queue{num: base + i, single: i%2 == 1, second: i%2 == 1}
		if q.second {
			q.Conn = qs[i-1].Conn
		} else if q.Conn, err = nfnl.Dial(o.RcvBuf); err != nil {
			q.second = true // there is nothing to close
		}
		if err == nil {
			if err = q.Request(q.config(o)); err == nil {
				qs = append(qs, q)
				continue
			}
		}
		_ = q.Close()
		for _, q := range qs {
			q.Close()
		}
		return nil, err
	}
	return qs, nil
}

// inUse tells a queue that somebody else has bound from missing rights. The kernel answers both with EPERM, but missing rights
// with every number.
func inUse(err error, tries int) bool { return errors.Is(err, unix.EPERM) && tries < 16 }

// config is the message that binds a queue and sets it up, in one step.
func (q *Queue) config(o Options) *nfnl.Message {
	m := nfnl.NewMessage(nfnl.Type(unix.NFNL_SUBSYS_QUEUE, msgConfig), q.num)
	m.Attr(cfgCmd, cmdBind, 0, 0, unix.AF_UNSPEC)
	if o.Discard {
		return m // a queue takes no packets before it is told how much of them to copy
	}
	if o.Cuts {
		// The kernel cuts before it finds that there is no room (nfqnl_enqueue_packet, net/netfilter/nfnetlink_queue.c).
		m.Attr(cfgParams, append(binary.BigEndian.AppendUint32(nil, 0), copyMeta)...)
		m.Attr32(cfgMaxLen, 0)
		m.Attr32(cfgMask, flagGSO|flagFailOpen)
		m.Attr32(cfgFlags, flagFailOpen)
		return m
	}
	snap := uint32(MaxPayload)
	if o.Snap > 0 && !q.single {
		snap = min(snap, uint32(o.Snap))
	}
	m.Attr(cfgParams, append(binary.BigEndian.AppendUint32(nil, snap), copyMode)...)
	return q.settings(m, o)
}

// settings adds the settings that may change while the queue is in use.
func (q *Queue) settings(m *nfnl.Message, o Options) *nfnl.Message {
	m.Attr32(cfgMaxLen, o.MaxLen)
	flags := uint32(0)
	if !q.single && !q.cuts.Load() {
		flags |= flagGSO
	}
	if o.FailOpen {
		flags |= flagFailOpen
	}
	m.Attr32(cfgMask, flagGSO|flagFailOpen)
	m.Attr32(cfgFlags, flags)
	return m
}

// Num returns the queue's number.
func (q *Queue) Num() uint16 { return q.num }

// Hook is the place in the stack where a packet was queued (NF_INET_… of linux/netfilter.h).
type Hook uint8

// The hooks that a message names.
const (
	HookPrerouting  Hook = 0
	HookLocalIn     Hook = 1
	HookForward     Hook = 2
	HookPostrouting Hook = 4
)

// Message is a packet as the queue hands it over.
type Message struct {
	Queue    uint16 // number of the queue
	ID       uint32 // of the packet in the queue
	Hook     Hook
	In, Out  uint32 // interface indexes, 0 if there is none
	Priority uint32 // skb->priority, 0 if it is 0 or the kernel (before 5.18) does not tell
	Length   uint32 // length of the packet in bytes; more than len(Payload) if it was cut
	Time     int64  // wall clock of the arrival in ns, 0 if the kernel has none
	Payload  []byte // part of the slot
	Tag      uint32 // of KindError: that of the verdict, see Option

	ChecksumNotReady    bool // the transport checksum is left to the hardware: the field holds a partial sum
	ChecksumNotVerified bool // nobody has verified the checksums
	GSO                 bool // a packet to be cut into segments later
	Bridged             bool // a bridge passes it on
}

// The bits of NFQA_SKB_INFO.
const (
	infoCSumNotReady    = 1 << 0
	infoGSO             = 1 << 1
	infoCSumNotVerified = 1 << 2
)

// Kind is the kind of a datagram of the socket.
type Kind uint8

// The kinds of datagrams.
const (
	KindOther  Kind = iota
	KindPacket      // a packet: the Message is filled
	KindError       // the kernel refused a verdict: the packet was gone
)

// Parse reads a datagram of the queue's socket into m. Payload refers to b.
func (m *Message) Parse(b []byte) Kind {
	msgs := nfnl.Messages(b)
	if !msgs.Next() {
		return KindOther
	}
	if msgs.Type == unix.NLMSG_ERROR {
		if msgs.Errno() == nil {
			return KindOther
		}
		*m = Message{}
		const errno = 4 // struct nlmsgerr: the error, then the header of the message
		if len(msgs.Body) >= errno+unix.SizeofNlMsghdr {
			m.Tag = binary.NativeEndian.Uint32(msgs.Body[errno+seqOffset:])
		}
		return KindError
	}
	if msgs.Type != nfnl.Type(unix.NFNL_SUBSYS_QUEUE, msgPacket) {
		return KindOther
	}
	*m = Message{Queue: msgs.Resource}
	seen := false
	for a := nfnl.Attrs(msgs.Body); a.Next(); {
		switch a.Type {
		case attrPacketHdr:
			if len(a.Data) >= 7 {
				m.ID, m.Hook, seen = a.Uint32(), Hook(a.Data[6]), true
			}
		case attrTimestamp:
			m.Time = a.Time()
		case attrInDev:
			m.In = a.Uint32()
		case attrOutDev:
			m.Out = a.Uint32()
		case attrPhysOutDev:
			m.Bridged = true
		case attrPriority:
			m.Priority = a.Uint32()
		case attrCapLen:
			m.Length = a.Uint32()
		case attrSKBInfo:
			info := a.Uint32()
			m.ChecksumNotReady = info&infoCSumNotReady != 0
			m.ChecksumNotVerified = info&infoCSumNotVerified != 0
			m.GSO = info&infoGSO != 0
		case attrPayload:
			m.Payload = a.Data
		}
	}
	if m.Length == 0 {
		m.Length = uint32(len(m.Payload))
	}
	if !seen {
		return KindOther
	}
	return KindPacket
}

// Configure changes length, fail-open and receive buffer of a queue in use. The kernel's refusal, if any,
// comes as a KindError datagram.
func (q *Queue) Configure(o Options) error {
	if err := q.SetReceiveBuffer(o.RcvBuf); err != nil {
		return err
	}
	return q.Tell(q.settings(nfnl.NewMessage(nfnl.Type(unix.NFNL_SUBSYS_QUEUE, msgConfig), q.num), o))
}

// Cut makes the kernel cut packets (GSO) before it queues them, and finish their checksums. Packets that wait already stay as
// they are.
func (q *Queue) Cut() error {
	q.cuts.Store(true)
	m := nfnl.NewMessage(nfnl.Type(unix.NFNL_SUBSYS_QUEUE, msgConfig), q.num)
	m.Attr32(cfgMask, flagGSO)
	m.Attr32(cfgFlags, 0)
	return q.Tell(m)
}
