//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// plainLoop is a queue loop in its usual first form: one receive call per packet, a copy of its payload, and one send
// call per verdict. Packets arrive as segments, since it does not tell the kernel that it accepts larger ones. It
// neither allocates nor decodes more than necessary.
type plainLoop struct {
	fd      int
	rule    *ruleset
	handled atomic.Uint64
	stop    atomic.Bool
	done    chan error
}

// Message types and attributes of linux/netfilter/nfnetlink_queue.h.
const (
	queueVerdict = 1
	queueConfig  = 2

	queueAttrPacketHdr  = 1
	queueAttrVerdictHdr = 2
	queueAttrPayload    = 10

	queueCfgCmd    = 1
	queueCfgParams = 2
	queueCfgMaxLen = 3

	queueBind       = 1
	queueCopyPacket = 2
	queueAccept     = 1
)

// The default room of a handle: 4096 packets, and as many again in the program's hands.
const (
	plainQueue     = 7
	plainMaxLen    = 2 * 4096
	plainRcvBuf    = 12 << 20
	plainMaxPacket = 0xffff
)

func openPlain(t traffic) (worker, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	l := &plainLoop{fd: fd, done: make(chan error, 1)}
	if err := l.bind(); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind a netfilter queue: %w", err)
	}
	if l.rule, err = install(t.chain(), []expr.Any{toQueue()}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	go func() { l.done <- l.run() }()
	return l, nil
}

// toQueue leads packets to the queue, with the extension that even kernels without nft_queue have. Its data is struct
// xt_NFQ_info_v3 of linux/netfilter/xt_NFQUEUE.h: number, count, flags.
func toQueue() expr.Any {
	const bypass = 1
	info := make(xt.Unknown, 8)
	binary.NativeEndian.PutUint16(info[0:], plainQueue)
	binary.NativeEndian.PutUint16(info[2:], 1)
	binary.NativeEndian.PutUint16(info[4:], bypass)
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}
}

// bind sets up the socket and the queue.
func (l *plainLoop) bind() error {
	if err := unix.Bind(l.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	nfnl.SetReceiveBuffer(l.fd, plainRcvBuf)
	if err := unix.SetsockoptInt(l.fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return err
	}
	// The loop checks at this interval whether it must end.
	if err := unix.SetsockoptTimeval(l.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50000}); err != nil {
		return err
	}
	var attrs []byte
	attrs = append(nfnl.AppendAttr(attrs, queueCfgCmd, 4), queueBind, 0, 0, unix.AF_UNSPEC)
	attrs = binary.BigEndian.AppendUint32(nfnl.AppendAttr(attrs, queueCfgParams, 5), plainMaxPacket)
	attrs = append(attrs, queueCopyPacket, 0, 0, 0)
	attrs = nfnl.AppendAttr32(attrs, queueCfgMaxLen, plainMaxLen)
	m := nfnl.AppendHeader(nil, nfnl.HeaderLen+len(attrs), nfnl.Type(unix.NFNL_SUBSYS_QUEUE, queueConfig),
		unix.NLM_F_REQUEST|unix.NLM_F_ACK, plainQueue)
	if _, err := unix.Write(l.fd, append(m, attrs...)); err != nil {
		return err
	}
	answer := make([]byte, 8192)
	n, err := unix.Read(l.fd, answer)
	if err != nil {
		return err
	}
	it := nfnl.Messages(answer[:n])
	if !it.Next() || it.Type != unix.NLMSG_ERROR {
		return unix.EBADMSG
	}
	return it.Errno()
}

func (l *plainLoop) run() error {
	datagram := make([]byte, 68<<10)
	payload := make([]byte, 0, 68<<10)
	verdict := make([]byte, 0, 64)
	for {
		n, err := unix.Read(l.fd, datagram)
		switch {
		case l.stop.Load():
			return nil
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("recv", err)
		}
		it := nfnl.Messages(datagram[:n])
		if !it.Next() || it.Type == unix.NLMSG_ERROR {
			continue
		}
		var id uint32
		for a := nfnl.Attrs(it.Body); a.Next(); {
			switch a.Type {
			case queueAttrPacketHdr:
				id = a.Uint32()
			case queueAttrPayload:
				payload = append(payload[:0], a.Data...)
			}
		}
		l.handled.Add(1) // before the packet can arrive anywhere
		if _, err := unix.Write(l.fd, appendVerdict(verdict, id)); err != nil {
			return os.NewSyscallError("send", err)
		}
	}
}

// appendVerdict appends the message that accepts a packet.
func appendVerdict(b []byte, id uint32) []byte {
	b = nfnl.AppendHeader(b, nfnl.HeaderLen+nfnl.AttrLen+8, nfnl.Type(unix.NFNL_SUBSYS_QUEUE, queueVerdict), unix.NLM_F_REQUEST, plainQueue)
	b = nfnl.AppendAttr(b, queueAttrVerdictHdr, 8)
	b = binary.BigEndian.AppendUint32(b, queueAccept)
	return binary.BigEndian.AppendUint32(b, id)
}

func (l *plainLoop) counts() (handled, missed uint64, err error) {
	select {
	case err := <-l.done:
		l.done <- err
		return 0, 0, fmt.Errorf("the loop has ended: %w", err)
	default:
	}
	return l.handled.Load(), 0, nil
}

func (l *plainLoop) close() error {
	err := l.rule.remove()
	time.Sleep(time.Millisecond) // for packets that the rule has already queued
	l.stop.Store(true)
	return errors.Join(err, <-l.done, unix.Close(l.fd))
}
