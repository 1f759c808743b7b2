//go:build linux

package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Protocol numbers (IANA).
const (
	protoTCP = 6
	protoUDP = 17
)

// kinds are the sockets that the kernel lists.
var kinds = [...]struct {
	family, protocol uint8
}{
	{unix.AF_INET, protoTCP}, {unix.AF_INET6, protoTCP}, {unix.AF_INET, protoUDP}, {unix.AF_INET6, protoUDP},
}

// States of TCP, which sockets of UDP have too: those with a peer are established (net/tcp_states.h).
const (
	StateEstablished    = 1
	stateSynReceived    = 3
	stateTimeWait       = 6
	StateCloseWait      = 8
	StateListen         = 10
	stateNewSynReceived = 12
)

// statesListed are the states of sockets that a process has, or had.
const statesListed = ^uint32(1<<stateSynReceived | 1<<stateTimeWait | 1<<stateNewSynReceived)

// Socket is a socket of IP.
type Socket struct {
	Family, State uint8 // AF_INET or AF_INET6, and a state of TCP
	Protocol      uint8
	Inode         uint32         // 0 if no process has it open
	Cookie        uint64         // by which programs know it
	Local, Remote netip.AddrPort // IPv4 mapped
}

// Listens reports whether the socket is a listener.
func (s *Socket) Listens() bool { return s.Protocol == protoTCP && s.State == StateListen }

// parse reads a socket from a message (struct inet_diag_msg of linux/inet_diag.h).
func parse(b []byte, protocol uint8) (s Socket, ok bool) {
	if len(b) < messageSize {
		return s, false
	}
	ne, be := binary.NativeEndian, binary.BigEndian
	return Socket{
		Family: b[0], State: b[1], Protocol: protocol,
		Inode:  ne.Uint32(b[68:]),
		Cookie: uint64(ne.Uint32(b[44:])) | uint64(ne.Uint32(b[48:]))<<32,
		Local:  netip.AddrPortFrom(readAddr(b[8:24], b[0]), be.Uint16(b[4:])),
		Remote: netip.AddrPortFrom(readAddr(b[24:40], b[0]), be.Uint16(b[6:])),
	}, true
}

// messageSize is the size of struct inet_diag_msg.
const messageSize = 72

// List returns the sockets of TCP and UDP of the calling thread's namespace, without those that no process has had yet or has any
// more. Protocols that the kernel does not list are left out.
func List() ([]Socket, error) {
	list, _, err := list()
	return list, err
}

// list is List, with the protocols that the kernel lists.
func list() (list []Socket, protocols map[uint8]bool, err error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("open sock_diag: %w", err)
	}
	defer conn.Close()
	protocols = map[uint8]bool{}
	for _, kind := range kinds {
		messages, err := dump(conn, kind.family, kind.protocol)
		if unlisted(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("list sockets: %w", err)
		}
		protocols[kind.protocol] = true
		for _, m := range messages {
			if s, ok := parse(m.Data, kind.protocol); ok {
				list = append(list, s)
			}
		}
	}
	return list, protocols, nil
}

// dump asks the kernel for the sockets of a family and protocol.
func dump(conn *netlink.Conn, family, protocol uint8) ([]netlink.Message, error) {
	request := make([]byte, requestSize)
	request[0], request[1] = family, protocol
	binary.NativeEndian.PutUint32(request[4:], statesListed)
	return execute(conn, netlink.Message{
		Header: netlink.Header{Type: sockByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
}

// execute sends a request and returns the answers. The library would wait, if a signal interrupts its call, until the socket has
// room: it has room already, so nothing would wake the library.
func execute(conn *netlink.Conn, m netlink.Message) ([]netlink.Message, error) {
	m.Header.Sequence = sequence.Add(1)
	m.Header.Length = uint32(unix.NLMSG_HDRLEN + len(m.Data)) // a multiple of 4, as requests are
	b, err := m.MarshalBinary()
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		for {
			sent = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
			if sent != unix.EINTR {
				return sent != unix.EAGAIN
			}
		}
	})
	if err = errors.Join(err, os.NewSyscallError("sendto", sent)); err != nil {
		return nil, err
	}
	answers, err := conn.Receive()
	if err != nil {
		return nil, err
	}
	return answers, netlink.Validate(m, answers)
}

// sequence numbers the requests.
var sequence atomic.Uint32

// unlisted reports whether a dump has failed because the kernel does not list such sockets, or has none.
func unlisted(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) }

// readAddr reads an address in network byte order; IPv4 ones are mapped.
func readAddr(b []byte, family byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom16(netip.AddrFrom4([4]byte(b)).As16())
	}
	return netip.AddrFrom16([16]byte(b))
}

// Count returns about how many sockets of TCP and UDP the calling thread's namespace has, 0 where that cannot be read.
func Count() (n int) {
	for _, name := range [...]string{"sockstat", "sockstat6"} {
		if text, err := os.ReadFile("/proc/thread-self/net/" + name); err == nil {
			n += inUse(string(text))
		}
	}
	return n
}

// inUse adds up the sockets of TCP and UDP in /proc/net/sockstat or sockstat6 (proc_pid_net(5)), lines such as "TCP: inuse 1 …".
func inUse(sockstat string) (n int) {
	for line := range strings.Lines(sockstat) {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] != "inuse" {
			continue
		}
		switch f[0] {
		case "TCP:", "UDP:", "TCP6:", "UDP6:":
			count, _ := strconv.Atoi(f[2])
			n += count
		}
	}
	return n
}
