//go:build linux

package e2e_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// flood is a set of UDP flows between two hosts with numbered datagrams, at a given rate, or more slowly if the machine
// cannot keep up: no flow ever has more than a window of datagrams in flight.
type flood struct {
	flows []*flow
	recv  net.PacketConn
	stop  chan struct{}
	senders,
	receiver sync.WaitGroup
}

// flow is one flow of a flood.
type flow struct {
	conn    net.Conn
	sent    []time.Time   // of each datagram; owned by the sender
	top     atomic.Uint64 // one more than the highest number received
	got     atomic.Int64  // number received
	arrived []uint64      // owned by the receiver
}

// Layout of a flood's payload: the flow's index, 4 bytes, and the datagram's number, 8 bytes, big endian.
const floodPayload = 12

// long reports whether tests may take as long as a release deserves; otherwise they take some seconds.
func long() bool { return os.Getenv("DIVERT_LONG") != "" }

// lasting returns how long a load lasts.
func lasting(short time.Duration) time.Duration {
	if long() {
		return time.Minute
	}
	return short
}

// perDatagram exceeds the buffer space that a small datagram uses on its way, in bytes: 768 at its receiver, 1280 at a
// queue's socket.
const perDatagram = 2048

// startFlood starts flows that send rate datagrams a second together, each with at most window datagrams in flight. The
// window shrinks where an ordinary user's sockets get smaller buffers.
func startFlood(t testing.TB, from, to *lab.Host, addr netip.Addr, flows, rate, window int) *flood {
	t.Helper()
	recv, err := to.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := recv.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
		buffer, failed := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
		if failed != nil {
			err = failed
		}
		window = min(window, buffer/perDatagram/flows)
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &flood{recv: recv, stop: make(chan struct{})}
	for range flows {
		c, err := from.Dial(t.Context(), "udp", recv.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		f.flows = append(f.flows, &flow{conn: c})
	}
	f.receiver.Go(f.receive)
	for i, fl := range f.flows {
		f.senders.Go(func() { fl.send(t, uint32(i), rate/flows, window, f.stop) })
	}
	return f
}

// port is the destination port.
func (f *flood) port() int { return f.recv.LocalAddr().(*net.UDPAddr).Port }

// windowTimeout is how long a full window of datagrams may be in flight; then they are given up for lost.
const windowTimeout = 500 * time.Millisecond

// send sends until stop: every millisecond the packets that are due.
func (fl *flow) send(t testing.TB, index uint32, rate, window int, stop <-chan struct{}) {
	b := binary.BigEndian.AppendUint32(nil, index)
	start := time.Now()
	lost := 0 // given up
	for due := 0; ; due = int(time.Since(start).Seconds() * float64(rate)) {
		for len(fl.sent) < due {
			for began := time.Now(); len(fl.sent)-int(fl.got.Load())-lost >= window; {
				if time.Since(began) > windowTimeout {
					lost = len(fl.sent) - int(fl.got.Load())
				}
				time.Sleep(200 * time.Microsecond)
				start = start.Add(200 * time.Microsecond)
			}
			number := uint64(len(fl.sent))
			fl.sent = append(fl.sent, time.Now())
			if _, err := fl.conn.Write(binary.BigEndian.AppendUint64(b, number)); err != nil {
				t.Errorf("datagram %d: %v", number, err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// receive records arriving datagrams until the socket is closed or its deadline passes.
func (f *flood) receive() {
	b := make([]byte, 64)
	for {
		n, _, err := f.recv.ReadFrom(b)
		if err != nil {
			return
		}
		if i := binary.BigEndian.Uint32(b); n == floodPayload && int(i) < len(f.flows) {
			fl, number := f.flows[i], binary.BigEndian.Uint64(b[4:])
			fl.arrived = append(fl.arrived, number)
			fl.top.Store(max(fl.top.Load(), number+1))
			fl.got.Add(1)
		}
	}
}

// arrived returns the number of datagrams received.
func (f *flood) arrived() (n uint64) {
	for _, fl := range f.flows {
		n += uint64(fl.got.Load())
	}
	return n
}

// sum counts the fates of a flood's datagrams.
type sum struct {
	sent, arrived, lost, double, late int // late: after one with a higher number
	missing                           [][]uint64
}

// finish stops the senders, waits until no more datagrams arrive, and counts.
func (f *flood) finish() (s sum) {
	close(f.stop)
	f.senders.Wait()
	f.settle()
	f.recv.SetReadDeadline(time.Now())
	f.receiver.Wait()
	f.recv.Close()
	for _, fl := range f.flows {
		fl.conn.Close()
		s.add(fl)
	}
	return s
}

// settle waits until every sent datagram has arrived, or none has for a second.
func (f *flood) settle() {
	for last, quiet := uint64(0), 0; quiet < 100; quiet++ {
		var top, sent uint64
		for _, fl := range f.flows {
			top += fl.top.Load()
			sent += uint64(len(fl.sent))
		}
		if top == sent {
			quiet += 20 // from here on only late ones can arrive
		}
		if top != last {
			last, quiet = top, 0
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// add counts one flow.
func (s *sum) add(fl *flow) {
	seen := make([]bool, len(fl.sent))
	highest := -1
	for _, number := range fl.arrived {
		n := int(number)
		switch {
		case seen[n]:
			s.double++
		case n < highest:
			s.late++
		}
		seen[n] = true
		highest = max(highest, n)
	}
	var missing []uint64
	for n, there := range seen {
		if !there {
			missing = append(missing, uint64(n))
		}
	}
	s.sent += len(fl.sent)
	s.arrived += len(fl.arrived)
	s.lost += len(missing)
	s.missing = append(s.missing, missing)
}

// numbered returns the flow and the number of a packet of a flood.
func numbered(b []byte) (index uint32, number uint64, ok bool) {
	var p packet.Parsed
	if !p.ParseExact(b) || p.UDP(b) == nil {
		return 0, 0, false
	}
	payload := p.Payload(b)
	if len(payload) != floodPayload {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(payload), binary.BigEndian.Uint64(payload[4:]), true
}
