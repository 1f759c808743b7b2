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
	w   *nfnl.Writer
	num uint16
}

// NewVerdicts returns an empty batch of verdicts.
func (q *Queue) NewVerdicts() (*Verdicts, error) {
	w, err := q.NewWriter()
	if err != nil {
		return nil, err
	}
	return &Verdicts{w: w, num: q.num}, nil
}

// Option says what a verdict changes besides the packet's fate.
type Option struct {
	Priority    uint32 // skb->priority, when SetPriority is set (kernel 5.18)
	SetPriority bool
	Payload     []byte // the packet's new bytes, nil to leave it as it is; kept until Flush
}

// Add adds a verdict. It sends what was gathered first when this one does not fit.
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
	if !v.w.Room(length) {
		if err := v.Flush(); err != nil {
			return err
		}
	}
	b := v.begin(v.w.Head(head), length, msgVerdict, id, verdict)
	if o.SetPriority {
		b = nfnl.AppendAttr32(b, attrPriority, o.Priority)
	}
	if o.Payload != nil {
		nfnl.AppendAttr(b, attrPayload, len(o.Payload))
		v.w.Payload(o.Payload)
	}
	return nil
}

// AddUpTo adds one verdict for all packets without one whose id is at most id, counted with wrap-around:
// for a run that goes on unchanged.
func (v *Verdicts) AddUpTo(id uint32, verdict Verdict, o Option) error {
	length := verdictHead
	if o.SetPriority {
		length += priorityAttr
	}
	if !v.w.Room(length) {
		if err := v.Flush(); err != nil {
			return err
		}
	}
	b := v.begin(v.w.Head(length), length, msgVerdictBatch, id, verdict)
	if o.SetPriority {
		nfnl.AppendAttr32(b, attrPriority, o.Priority)
	}
	return nil
}

// begin appends the headers and the verdict itself.
func (v *Verdicts) begin(b []byte, length int, typ uint16, id uint32, verdict Verdict) []byte {
	b = nfnl.AppendHeader(b, length, nfnl.Type(unix.NFNL_SUBSYS_QUEUE, typ), unix.NLM_F_REQUEST, v.num)
	b = nfnl.AppendAttr(b, attrVerdictHdr, 8)
	b = binary.BigEndian.AppendUint32(b, uint32(verdict))
	return binary.BigEndian.AppendUint32(b, id)
}

// Flush sends what was gathered.
func (v *Verdicts) Flush() error { return v.w.Flush() }
