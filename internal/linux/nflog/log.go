//go:build linux

package nflog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// Types and attributes of linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = 0
	msgConfig = 1

	attrPacketHdr = 1
	attrTimestamp = 3
	attrInDev     = 4
	attrOutDev    = 5
	attrPayload   = 9
	attrSeq       = 12

	cfgCmd        = 1
	cfgMode       = 2
	cfgBufferSize = 3
	cfgTimeout    = 4
	cfgThreshold  = 5
	cfgFlags      = 6

	cmdBind    = 1
	copyPacket = 2
	flagSeq    = 1
)

// A log that gathers (see Gather) gathers copies into one datagram until it is full, holds Threshold of them, or the oldest
// has waited for flushTimeout.
const (
	datagramSize = 128 << 10 // the most the kernel allows, in bytes
	Threshold    = 32
	flushTimeout = 1 // in units of 10 ms
)

// singleSize is the memory for a datagram of one copy, in bytes; for a longer one the kernel takes what it needs. The kernel
// allows no less than a page of it, or 8 KiB where pages are larger (NFULNL_NLBUFSIZ_DEFAULT, net/netfilter/nfnetlink_log.c).
const singleSize = 8 << 10

// BufferSize is the size of a slot that holds any datagram of a log, in bytes. The kernel fills the memory
// that it has allocated for one, which is datagramSize and its own overhead rounded up to a power of two
// (net/core/skbuff.c, kmalloc_size_roundup).
const BufferSize = 2 * datagramSize

// maxCopy is the most of a packet that a log copies, in bytes: an attribute's length has 16 bits.
const maxCopy = 0xffff - nfnl.AttrLen

// Log is a log group bound by this process. It ends with Close or with the process.
type Log struct {
	*nfnl.Conn
	group uint16
}

// Group numbers are taken from the upper half: people number theirs from 0 up.
const (
	firstGroup = 0x8000
	numGroups  = 0x8000
)

// Open binds a log group that is free in the namespace, with a socket receive buffer of rcvbuf bytes. It copies at most snap
// bytes of each packet; 0 means all.
func Open(rcvbuf, snap int) (*Log, error) {
	conn, err := nfnl.Dial(rcvbuf)
	if err != nil {
		return nil, err
	}
	start := rand.IntN(numGroups)
	for i := range numGroups {
		group := uint16(firstGroup + (start+i)%numGroups)
		if err = conn.Request(config(group, snap)); err == nil {
			return &Log{Conn: conn, group: group}, nil
		}
		// The kernel answers EBUSY or EPERM for a group that somebody else has bound; without rights it answers EPERM for every
		// number.
		if !errors.Is(err, unix.EBUSY) && (!errors.Is(err, unix.EPERM) || i >= 16) {
			break
		}
	}
	conn.Close()
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("bind a netfilter log group: %w (needs CAP_NET_ADMIN)", err)
	}
	return nil, fmt.Errorf("bind a netfilter log group: %w", err)
}

// config is the message that binds a group and sets it up, in one step.
func config(group uint16, snap int) *nfnl.Message {
	if snap == 0 {
		snap = maxCopy
	}
	m := nfnl.NewMessage(nfnl.Type(unix.NFNL_SUBSYS_ULOG, msgConfig), group)
	m.Attr(cfgCmd, cmdBind)
	m.Attr(cfgMode, append(binary.BigEndian.AppendUint32(nil, uint32(min(snap, maxCopy))), copyPacket, 0)...)
	m.Attr32(cfgTimeout, flushTimeout)
	setGather(m, false)
	m.Attr(cfgFlags, binary.BigEndian.AppendUint16(nil, flagSeq)...)
	return m
}

// setGather adds the attributes of Gather.
func setGather(m *nfnl.Message, on bool) {
	size, threshold := uint32(singleSize), uint32(1)
	if on {
		size, threshold = datagramSize, Threshold
	}
	m.Attr32(cfgBufferSize, size)
	m.Attr32(cfgThreshold, threshold)
}

// Gather turns gathering on or off; Open leaves it off. It takes less work for each copy, but delays copies by some 10 ms where
// few come. Copies that are gathered already still come within that time.
func (l *Log) Gather(on bool) error {
	m := nfnl.NewMessage(nfnl.Type(unix.NFNL_SUBSYS_ULOG, msgConfig), l.group)
	setGather(m, on)
	return l.Tell(m)
}

// Group returns the group's number.
func (l *Log) Group() uint16 { return l.group }

// Copy is one packet of a log.
type Copy struct {
	Hook    uint8  // NF_INET_… of linux/netfilter.h
	In, Out uint32 // interface indexes, 0 if there is none
	Time    int64  // wall clock of the arrival in ns, 0 if the kernel has none
	Seq     uint32 // counts the copies of the group: a gap means copies lost because the receive buffer was full
	Payload []byte // the packet, an IP header first; part of the datagram
}

// Datagram walks the copies in a datagram of the log's socket.
type Datagram struct{ msgs nfnl.MessageIter }

// Copies returns the copies in a datagram.
func Copies(b []byte) Datagram { return Datagram{nfnl.Messages(b)} }

// Next sets c to the next copy and reports whether there is one.
func (d *Datagram) Next(c *Copy) bool {
	for d.msgs.Next() {
		if d.msgs.Type == nfnl.Type(unix.NFNL_SUBSYS_ULOG, msgPacket) {
			c.parse(d.msgs.Body)
			return true
		}
	}
	return false
}

// parse reads the attributes of a message.
func (c *Copy) parse(body []byte) {
	*c = Copy{}
	for a := nfnl.Attrs(body); a.Next(); {
		switch a.Type {
		case attrPacketHdr:
			if len(a.Data) >= 3 {
				c.Hook = a.Data[2]
			}
		case attrTimestamp:
			c.Time = a.Time()
		case attrInDev:
			c.In = a.Uint32()
		case attrOutDev:
			c.Out = a.Uint32()
		case attrSeq:
			c.Seq = a.Uint32()
		case attrPayload:
			c.Payload = a.Data
		}
	}
}
