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

// flood is a number of UDP flows from one host to another whose datagrams are numbered, at a given rate, or slower
// where the machine does not keep up: it never has more than a window of datagrams of a flow under way.
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
	sent    []time.Time   // of each datagram; the sender's
	top     atomic.Uint64 // one more than the highest number that has arrived
	got     atomic.Int64  // how many have arrived
	arrived []uint64      // the receiver's
}

// Layout of a flood's payload: the flow's index, 4 bytes, and the datagram's number, 8 bytes, big endian.
const floodPayload = 12

// long tells to take the time that a release is worth; without it tests take some seconds.
func long() bool { return os.Getenv("DIVERT_LONG") != "" }

// lasting is how long a load lasts.
func lasting(short time.Duration) time.Duration {
	if long() {
		return time.Minute
	}
	return short
}

// perDatagram is more than a small datagram takes of a buffer on its way, in bytes: 768 of its receiver's, 1280
// of a queue's socket.
const perDatagram = 2048

// startFlood starts flows that send rate datagrams a second together, with at most window datagrams of each under
// way: less where sockets are not granted buffers for as many, those of ordinary users.
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

// windowTimeout is how long a full window of datagrams may be under way; then they are given up for lost.
const windowTimeout = 500 * time.Millisecond

// send sends until stop: each millisecond the packets that are due.
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

// receive notes the datagrams that arrive until the socket is closed or its deadline is over.
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

// arrived returns how many datagrams have arrived.
func (f *flood) arrived() (n uint64) {
	for _, fl := range f.flows {
		n += uint64(fl.got.Load())
	}
	return n
}

// sum is what became of a flood's datagrams.
type sum struct {
	sent, arrived, lost, double, late int // late: behind one with a higher number
	missing                           [][]uint64
}

// finish stops the senders, waits until nothing arrives any more and counts.
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

// settle waits until everything sent has arrived, or nothing has for a second.
func (f *flood) settle() {
	for last, quiet := uint64(0), 0; quiet < 100; quiet++ {
		var top, sent uint64
		for _, fl := range f.flows {
			top += fl.top.Load()
			sent += uint64(len(fl.sent))
		}
		if top == sent {
			quiet += 20 // only late ones can come now
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

// numbered returns flow and number of a packet of a flood.
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
