//go:build linux

package superpacket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/packet"
)

// Tap knows the sizes of the datagrams in superpackets that have come into its namespace lately. Its methods may be called
// from several goroutines.
type Tap struct {
	socket *os.File
	raw    syscall.RawConn
	work   sync.WaitGroup
	closed chan struct{}

	mu    sync.Mutex
	buf   [headerLen + snap]byte
	seed  maphash.Seed
	sizes [2]map[uint64]uint16 // by key; the second is the newer
}

// snap is how many bytes of a packet are looked at: the headers with those of the link, and the payload that keys are made of.
const snap = 192

// maxSizes is how many sizes a generation has.
const maxSizes = 4096

// gatherTime is how long packets may wait before they are read without being asked for, so that there is room for others.
const gatherTime = 20 * time.Millisecond

// struct virtio_net_hdr of linux/virtio_net.h.
const (
	headerLen     = 10
	needsChecksum = 1
	gsoUDP        = 5
)

// Open opens a tap in the namespace of the calling thread, with room for rcvbuf bytes of packets that have not been read. It fails
// with os.ErrPermission without CAP_NET_RAW.
func Open(rcvbuf int) (*Tap, error) {
	// Of protocol 0, so that nothing comes before all is set.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", os.NewSyscallError("socket", err))
	}
	t := &Tap{
		socket: os.NewFile(uintptr(fd), "superpackets"), closed: make(chan struct{}),
		seed: maphash.MakeSeed(), sizes: [2]map[uint64]uint16{{}, {}},
	}
	if t.raw, err = t.socket.SyscallConn(); err == nil {
		err = listen(fd, rcvbuf)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("packet socket: %w", err), t.socket.Close())
	}
	t.work.Go(t.run)
	return t, nil
}

// listen makes a packet socket hear of superpackets of UDP that come in.
func listen(fd, rcvbuf int) error {
	nfnl.SetReceiveBuffer(fd, rcvbuf)
	filter := unfinished()
	for _, err := range []error{
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}),
	} {
		if err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	// All protocols: sockets for one have its packets behind netfilter (since Linux 6.16; __netif_receive_skb_core, net/core/dev.c).
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all}))
}

// run reads the socket now and then until it is closed.
func (t *Tap) run() {
	for t.raw.Read(func(fd uintptr) bool { return t.read(int(fd)) > 0 }) == nil {
		select {
		case <-t.closed:
			return
		case <-time.After(gatherTime):
		}
	}
}

// Look takes in all that has come until now.
func (t *Tap) Look() {
	_ = t.raw.Control(func(fd uintptr) { t.read(int(fd)) }) // closed: nothing comes
}

// Size returns the payload in bytes of each datagram, the last excepted, of which a superpacket consists that has come in; 0 if b
// is no superpacket or not known. b begins with the IP header; its addresses and ports may have been translated since.
func (t *Tap) Size(b []byte) int {
	var p packet.Parsed
	if !p.Parse(b) || p.UDPOff < 0 {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	key := t.key(b[p.UDPOff:])
	if size, ok := t.sizes[1][key]; ok {
		return int(size)
	}
	return int(t.sizes[0][key])
}

// key identifies a datagram by what nobody changes on its way: the length, and the beginning of the payload.
func (t *Tap) key(udp []byte) uint64 {
	const payload = 64
	var b [2 + payload]byte
	copy(b[:], udp[4:6])
	n := 2 + copy(b[2:], udp[packet.UDPHeaderLen:])
	return maphash.Bytes(t.seed, b[:n])
}

// read takes in what has come to the socket, and returns how many packets that are.
func (t *Tap) read(fd int) (packets int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for packets < 2*maxSizes { // others wait for the sizes
		n, err := unix.Read(fd, t.buf[:])
		switch {
		case err == unix.EINTR:
		case err == unix.EINVAL: // a superpacket that the header has no word for, before Linux 6.2
			packets++
		case err != nil || n == 0:
			return packets
		default:
			packets++
			t.take(t.buf[:n])
		}
	}
	return packets
}

// take takes in a packet.
func (t *Tap) take(b []byte) {
	if len(b) < headerLen || b[0]&needsChecksum == 0 {
		return // no superpacket
	}
	udp := headerLen + int(binary.NativeEndian.Uint16(b[6:])) // where the checksum begins
	if len(b) < udp+packet.UDPHeaderLen {
		return
	}
	key := t.key(b[udp:])
	if b[1] != gsoUDP {
		delete(t.sizes[0], key)
		delete(t.sizes[1], key)
		return
	}
	if len(t.sizes[1]) >= maxSizes {
		clear(t.sizes[0])
		t.sizes[0], t.sizes[1] = t.sizes[1], t.sizes[0]
	}
	t.sizes[1][key] = binary.NativeEndian.Uint16(b[4:])
}

// Close ends the tap. It is called once.
func (t *Tap) Close() error {
	close(t.closed)
	err := t.socket.Close()
	t.work.Wait()
	return err
}
