//go:build linux

package queue

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// Verdict is what happens to a queued packet (NF_… of linux/netfilter.h).
type Verdict uint32

// The verdicts.
const (
	Drop   Verdict = 0
	Accept Verdict = 1 // it leaves the hook
	Repeat Verdict = 4 // it enters the chain that queued it once more
)

// ErrTooLong means that a packet is longer than MaxPayload.
var ErrTooLong = errors.New("packet too long for the netfilter queue (65531 bytes)")

// Lengths of verdict messages, in bytes.
const (
	verdictHead  = nfnl.HeaderLen + nfnl.AttrLen + 8
	priorityAttr = nfnl.AttrLen + 4
)

// Verdicts gathers verdicts and sends them with one system call. It belongs to one goroutine at a
// time; a queue may have several. A verdict on a packet that is gone answers with a KindError datagram.
type Verdicts struct {
	w      *nfnl.Writer
	num    uint16
	err    error // of a Flush that Add made
	unsent []Unsent
}

// NewVerdicts returns an empty batch of verdicts.
func (q *Queue) NewVerdicts() (*Verdicts, error) {
	w, err := q.NewWriter()
	if err != nil {
		return nil, err
	}
	v := &Verdicts{w: w, num: q.num}
	w.OnUnsent(func(head []byte) { v.unsent = append(v.unsent, parseUnsent(head)) })
	return v, nil
}

// Option has the changes of a verdict besides the packet's fate.
type Option struct {
	Priority    uint32 // skb->priority, when SetPriority is set (kernel 5.18)
	SetPriority bool
	Payload     []byte // the packet's new bytes, nil to leave it as it is; kept until Flush

	// Tag comes back in Message.Tag if the kernel refuses the verdict, and in Unsent.
	Tag uint32
}

// Unsent is a verdict that did not reach the kernel, without its payload.
type Unsent struct {
	ID      uint32
	UpTo    bool // of AddUpTo
	Verdict Verdict
	Option  Option
	Payload bool // it had one
}

// Add adds the verdict to a batch again.
func (u Unsent) Add(v *Verdicts) {
	if u.UpTo {
		v.AddUpTo(u.ID, u.Verdict, u.Option)
	} else {
		_ = v.Add(u.ID, u.Verdict, u.Option) // fails only for a payload
	}
}

// parseUnsent reads the start of a message of begin.
func parseUnsent(head []byte) (u Unsent) {
	length := int(binary.NativeEndian.Uint32(head))
	u.UpTo = binary.NativeEndian.Uint16(head[4:]) == nfnl.Type(unix.NFNL_SUBSYS_QUEUE, msgVerdictBatch)
	u.Option.Tag = binary.NativeEndian.Uint32(head[seqOffset:])
	for a := nfnl.Attrs(head[nfnl.HeaderLen:min(length, len(head))]); a.Next(); {
		switch a.Type {
		case attrVerdictHdr:
			u.Verdict, u.ID = Verdict(a.Uint32()), binary.BigEndian.Uint32(a.Data[4:])
		case attrPriority:
			u.Option.Priority, u.Option.SetPriority = a.Uint32(), true
		}
	}
	head = head[verdictHead:min(length, len(head))]
	if u.Option.SetPriority {
		head = head[priorityAttr:]
	}
	u.Payload = len(head) > 0
	return u
}

// Unsent returns the verdicts that the calls of Flush since its last call could not send. The slice is the caller's.
func (v *Verdicts) Unsent() []Unsent {
	u := v.unsent
	v.unsent = nil
	return u
}

// Add adds a verdict. If it does not fit, Add sends the gathered ones first; if that fails, the next Flush returns the error.
// Add itself fails only with ErrTooLong.
func (v *Verdicts) Add(id uint32, verdict Verdict, o Option) error {
	if len(o.Payload) > MaxPayload {
		return ErrTooLong
	}
	head := verdictHead
	if o.SetPriority {
		head += priorityAttr
	}
	length := head
	if o.Payload != nil {
		head += nfnl.AttrLen
		length = head + nfnl.Align(len(o.Payload))
	}
	b := v.begin(head, length, msgVerdict, id, verdict, &o)
	if o.Payload != nil {
		nfnl.AppendAttr(b, attrPayload, len(o.Payload))
		v.w.Payload(o.Payload)
	}
	return nil
}

// AddUpTo adds one verdict for all packets without one whose id is at most id, counted with wrap-around: for a run of packets
// that go on unchanged.
func (v *Verdicts) AddUpTo(id uint32, verdict Verdict, o Option) {
	length := verdictHead
	if o.SetPriority {
		length += priorityAttr
	}
	v.begin(length, length, msgVerdictBatch, id, verdict, &o)
}

// seqOffset is where the sequence number stands in a netlink header. The kernel's answer repeats it.
const seqOffset = 8

// begin makes room for a message and appends the headers, the verdict itself and the priority.
func (v *Verdicts) begin(head, length int, typ uint16, id uint32, verdict Verdict, o *Option) []byte {
	if !v.w.Room(length) {
		v.err = errors.Join(v.err, v.w.Flush())
	}
	b := nfnl.AppendHeader(v.w.Head(head), length, nfnl.Type(unix.NFNL_SUBSYS_QUEUE, typ), unix.NLM_F_REQUEST, v.num)
	binary.NativeEndian.PutUint32(b[seqOffset:], o.Tag)
	b = nfnl.AppendAttr(b, attrVerdictHdr, 8)
	b = binary.BigEndian.AppendUint32(b, uint32(verdict))
	b = binary.BigEndian.AppendUint32(b, id)
	if o.SetPriority {
		b = nfnl.AppendAttr32(b, attrPriority, o.Priority)
	}
	return b
}

// Flush sends the gathered verdicts. If it fails, Unsent tells which verdicts the kernel has not got; the others, of this
// call and of Add, are in force.
func (v *Verdicts) Flush() error {
	err := v.w.Flush()
	if v.err != nil {
		err, v.err = errors.Join(v.err, err), nil
	}
	return err
}
