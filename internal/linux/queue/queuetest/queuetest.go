//go:build linux

// Package queuetest stands in for the kernel behind a queue: messages that a test writes to the other end of a pair come from
// the queue, and the test reads the verdicts there.
package queuetest

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/queue"
)

// Attributes of linux/netfilter/nfnetlink_queue.h.
const (
	attrPacketHdr  = 1
	attrVerdictHdr = 2
	attrOutDev     = 6
	attrPayload    = 10
	attrCapLen     = 13
	attrSKBInfo    = 14
	attrPriority   = 21
)

// Pair returns a queue whose socket is one of a pair, and the other one. The kernel's queues and networks are not concerned.
func Pair(t testing.TB) (q *queue.Queue, there int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nfnl.NewConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		unix.Close(fds[1])
	})
	return &queue.Queue{Conn: conn}, fds[1]
}

// Datagram is the kernel's message for a packet of POST_ROUTING that leaves by interface 2, its checksum left to the
// device.
func Datagram(id uint32, payload []byte) []byte {
	var body []byte
	add := func(typ uint16, data []byte) {
		body = append(nfnl.AppendAttr(body, typ, len(data)), data...)
		body = append(body, make([]byte, nfnl.Align(len(body))-len(body))...)
	}
	add(attrPacketHdr, append(binary.BigEndian.AppendUint32(nil, id), 8, 0, byte(queue.HookPostrouting)))
	add(attrOutDev, []byte{0, 0, 0, 2})
	add(attrSKBInfo, []byte{0, 0, 0, 1})
	add(attrPayload, payload)
	return append(nfnl.AppendHeader(nil, nfnl.HeaderLen+len(body), nfnl.Type(unix.NFNL_SUBSYS_QUEUE, 0), 0, 0), body...)
}

// Cut makes a datagram say that the packet had length bytes.
func Cut(datagram []byte, length uint32) []byte {
	datagram = nfnl.AppendAttr32(datagram, attrCapLen, length)
	binary.NativeEndian.PutUint32(datagram, uint32(len(datagram)))
	return datagram
}

// Verdict is a verdict that was sent.
type Verdict struct {
	ID       uint32
	Verdict  queue.Verdict
	Priority uint32 // 0: not set
	Payload  string
}

// Verdicts reads the messages that were sent to the other end of a pair.
func Verdicts(t testing.TB, there int) (got []Verdict) {
	t.Helper()
	b := make([]byte, 1<<20)
	for {
		n, err := unix.Read(there, b)
		if err == unix.EAGAIN {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		for m := nfnl.Messages(b[:n]); m.Next(); {
			var v Verdict
			for a := nfnl.Attrs(m.Body); a.Next(); {
				switch a.Type {
				case attrVerdictHdr:
					v.Verdict, v.ID = queue.Verdict(a.Uint32()), binary.BigEndian.Uint32(a.Data[4:])
				case attrPriority:
					v.Priority = a.Uint32()
				case attrPayload:
					v.Payload = string(a.Data)
				}
			}
			got = append(got, v)
		}
	}
}
