//go:build linux

package codegen

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// load compiles, builds and loads a filter.
func load(t testing.TB, text string, h Hook, o Options) *Program {
	t.Helper()
	requireBPF(t)
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	u, err := Build(p, h, here(o))
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := u.Load()
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { loaded.Close() })
	return loaded
}

// wantRun runs a program and checks the answer.
func wantRun(t *testing.T, p *Program, b []byte, want bool) {
	t.Helper()
	if got, err := run(p, b); err != nil || got != want {
		t.Errorf("packet %.100x: got %v, %v, want %v", b, got, err, want)
	}
}

func TestCount(t *testing.T) {
	p := load(t, "udp", Hook{}, Options{Count: true})
	wantRun(t, p, header4(protoUDP, nil, 0, udpHeader("x")), true)
	wantRun(t, p, header4(protoTCP, nil, 0, tcpHeader(5, 0, "")), false)
	wantRun(t, p, header6(protoUDP, udpHeader("x")), true)
	if c, err := p.Counter(); err != nil || c != (Counter{Matched: 2}) {
		t.Errorf("got %+v, %v", c, err)
	}
}

// TestCorrelate compares the hash and the time that a program reports with those of package packet.
func TestCorrelate(t *testing.T) {
	for _, clock := range []struct {
		name string
		hook Hook
	}{
		{"constant", Hook{Clock: ClockConstant, Timestamp: -12345}},
		{"monotonic", Hook{Clock: ClockMonotonic}},
	} {
		t.Run(clock.name, func(t *testing.T) {
			p := load(t, "random32 >= 0 and timestamp != 1", clock.hook, Options{Correlate: true, Count: true})
			r, err := ringbuf.NewReader(p.Times())
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			r.SetDeadline(time.Unix(1, 0)) // reads do not wait
			for _, b := range samplePackets() {
				var parsed packet.Parsed
				valid := parsed.ParseExact(b)
				before := monotonic(t)
				wantRun(t, p, b, valid)
				if !valid {
					continue
				}
				record, err := r.Read()
				if err != nil {
					t.Fatal(err)
				}
				told, err := DecodeTime(record.RawSample)
				if want := packet.Hash(b, 0); err != nil || told.Hash != want {
					t.Errorf("packet %.100x: hash %x, %v, want %x", b, told.Hash, err, want)
				}
				if clock.hook.Clock == ClockConstant && told.Timestamp != -12345 ||
					clock.hook.Clock == ClockMonotonic && (told.Timestamp < before || told.Timestamp > monotonic(t)) {
					t.Errorf("timestamp %d", told.Timestamp)
				}
			}
		})
	}
}

// monotonic returns the time of the clock that programs read, in nanoseconds.
func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano()
}

// skb is the part of struct __sk_buff that BPF_PROG_TEST_RUN takes from user space.
type skb struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTci, VlanProto uint32
	Priority, IngressIfindex, Ifindex                                           uint32
	Rest                                                                        [148]byte
}

// TestCursor runs a program on packets that have been served already, or not.
func TestCursor(t *testing.T) {
	own := cursor.NewKey(100, 3)
	p := load(t, "true", Hook{Cursor: CursorCheck{Enabled: true, Key: own}}, Options{})
	for _, row := range []struct {
		name     string
		priority uint32
		want     bool
	}{
		{"none", 0, true},
		{"a priority of the kernel", 6, true},
		{"a priority of somebody else", 0xC0FFEE00, true},
		{"above all cursors", 0xFFFFFFFF, true},
		{"a handle of higher priority", cursor.NewKey(101, 0).Pack(0), true},
		{"the same priority, before", cursor.NewKey(100, 4).Pack(5), true},
		{"this handle", own.Pack(0), false},
		{"this handle, with an old priority", own.Pack(15), false},
		{"the same priority, after", cursor.NewKey(100, 2).Pack(0), false},
		{"a handle of lower priority", cursor.NewKey(-30000, 0).Pack(0), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			result, err := p.program.Run(&ebpf.RunOptions{
				Data:    frame(header4(protoUDP, nil, 0, udpHeader("x"))),
				Context: skb{Priority: row.priority},
			})
			if err != nil || result != 0 != row.want {
				t.Errorf("got %d, %v, want %v", result, err, row.want)
			}
		})
	}
}

// TestSniffRecord copies one packet out.
func TestSniffRecord(t *testing.T) {
	b := header4(protoUDP, nil, 0, udpHeader("some payload"))
	for _, row := range []struct {
		name string
		snap uint32
		want int
	}{{"whole", 0, len(b)}, {"a part", 25, 25}, {"exactly", uint32(len(b)), len(b)}} {
		t.Run(row.name, func(t *testing.T) {
			p := load(t, "udp", Hook{}, Options{Sniff: true, Snap: row.snap, Tag: 0xFEDCBA98, Count: true})
			r, err := perf.NewReader(p.Packets(), 1<<16)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			r.SetDeadline(time.Now().Add(5 * time.Second))
			before := monotonic(t)
			wantRun(t, p, b, false) // a sniffing program matches nothing
			sample, err := r.Read()
			if err != nil {
				t.Fatal(err)
			}
			record, got, ok, err := new(Joiner).Decode(sample.RawSample)
			if err != nil || !ok || !bytes.Equal(got, b[:row.want]) {
				t.Errorf("got %x, %v, want %x", got, err, b[:row.want])
			}
			if record.Timestamp < before || record.Timestamp > monotonic(t) {
				t.Errorf("timestamp %d", record.Timestamp)
			}
			record.Timestamp, record.Device = 0, 0
			if want := (Record{Length: uint32(len(b)), Captured: uint32(row.want), Tag: 0xFEDCBA98}); record != want {
				t.Errorf("got %+v, want %+v", record, want)
			}
			if c, err := p.Counter(); err != nil || c != (Counter{Matched: 1}) {
				t.Errorf("counter %+v, %v", c, err)
			}
		})
	}
}

// TestSniffFailure counts packets for which there is no buffer.
func TestSniffFailure(t *testing.T) {
	p := load(t, "udp", Hook{}, Options{Sniff: true, Count: true})
	wantRun(t, p, header4(protoUDP, nil, 0, udpHeader("x")), false)
	if c, err := p.Counter(); err != nil || c != (Counter{Matched: 1, Failed: 1}) {
		t.Errorf("counter %+v, %v", c, err)
	}
}

// TestSniffStream copies a TCP stream out, whose packets are of up to 64 KiB and lie in many pages
// each, and compares every byte.
func TestSniffStream(t *testing.T) {
	n := lab.NewT(t)
	h, err := n.AddHost("sniffed")
	if err != nil {
		t.Fatal(err)
	}
	const size, seed = 4 << 20, 9
	p := load(t, "tcp.PayloadLength > 0 and tcp.DstPort == 7777", Hook{}, Options{Sniff: true, Count: true})
	r, err := perf.NewReader(p.Packets(), 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	attachRaw(t, h, p, unix.IPPROTO_TCP)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := lab.TransferTCP(ctx, h, h, netip.MustParseAddrPort("127.0.0.1:7777"), size, seed); err != nil {
		t.Fatal(err)
	}
	stream, err := io.ReadAll(lab.Stream(size, seed))
	if err != nil {
		t.Fatal(err)
	}
	var s streamCheck
	for _, sample := range samples(t, r) {
		if err := s.add(sample); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.compare(stream); err != nil {
		t.Fatal(err)
	}
	c, err := p.Counter()
	t.Logf("%d packets, the longest of %d bytes, %d segmented; counter %+v, %v", len(s.packets), s.longest, s.segmented, c, err)
	if len(s.packets) == 0 || c.Failed != 0 || int(c.Matched) != len(s.packets) {
		t.Errorf("%d packets, counter %+v", len(s.packets), c)
	}
}

// TestSniffLongest copies datagrams as long as IP has them, each in two samples, and compares every byte.
func TestSniffLongest(t *testing.T) {
	n := lab.NewT(t)
	h, err := n.AddHost("sniffed")
	if err != nil {
		t.Fatal(err)
	}
	p := load(t, "udp", Hook{}, Options{Sniff: true, Count: true})
	r, err := perf.NewReader(p.Packets(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	attachRaw(t, h, p, unix.IPPROTO_UDP)
	sink, err := h.ListenPacket("udp", "127.0.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	c, err := h.Dial(t.Context(), "udp", "127.0.0.1:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const longest = 0xffff - 28
	payload := make([]byte, longest)
	if _, err := io.ReadFull(lab.Stream(longest, 5), payload); err != nil {
		t.Fatal(err)
	}
	for _, length := range []int{longest, MaxSnap - 28 + 1, MaxSnap - 28} {
		if _, err := c.Write(payload[:length]); err != nil {
			t.Fatal(err)
		}
		var j Joiner
		packets := 0
		for i, sample := range samples(t, r) {
			record, b, ok, err := j.Decode(sample)
			if err != nil || ok && (int(record.Captured) != len(b) || !bytes.Equal(b[28:], payload[:length])) {
				t.Errorf("%d bytes: sample %d is %+v, %v, and not what was sent", length, i, record, err)
			}
			if ok {
				packets++
			}
		}
		if packets != 1 {
			t.Errorf("%d bytes: %d packets", length, packets)
		}
	}
}

// samples returns the samples that come until none does for a while. None must be lost.
func samples(t *testing.T, r *perf.Reader) (all [][]byte) {
	t.Helper()
	for {
		r.SetDeadline(time.Now().Add(300 * time.Millisecond))
		sample, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return all
		}
		if err != nil || sample.LostSamples > 0 {
			t.Fatalf("%v, %d lost", err, sample.LostSamples)
		}
		all = append(all, sample.RawSample)
	}
}

// attachRaw makes a raw socket of a protocol in a host, whose filter is a program; it receives nothing.
func attachRaw(t *testing.T, h *lab.Host, p *Program, protocol int) {
	t.Helper()
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, p.FD())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// streamCheck compares packets of a TCP stream with the bytes sent. Those of one processor come in order, but one
// processor after the other.
type streamCheck struct {
	joiner             Joiner
	packets            []segment
	longest, segmented int
}

// segment is a packet's place in its stream.
type segment struct {
	seq     uint32
	payload []byte
}

func (s *streamCheck) add(sample []byte) error {
	r, b, ok, err := s.joiner.Decode(sample)
	if err != nil || !ok {
		return err
	}
	switch {
	case r.Captured != r.Length || int(r.Length) != len(b):
		return errors.New("a packet was cut")
	case len(b) != int(binary.BigEndian.Uint16(b[2:])):
		return errors.New("a length that is not the packet's")
	}
	s.longest = max(s.longest, len(b))
	if r.SegmentSize != 0 {
		s.segmented++
	}
	header := 20 + int(b[32]>>4)*4
	s.packets = append(s.packets, segment{binary.BigEndian.Uint32(b[24:]), bytes.Clone(b[header:])})
	return nil
}

// compare compares each packet with its part of the stream, which must all have been seen.
func (s *streamCheck) compare(stream []byte) error {
	if len(s.packets) == 0 {
		return errors.New("no packets")
	}
	first := s.packets[0].seq
	for _, p := range s.packets {
		if int32(p.seq-first) < 0 {
			first = p.seq
		}
	}
	seen := 0
	for _, p := range s.packets {
		at := int(p.seq - first)
		if at+len(p.payload) > len(stream) || !bytes.Equal(p.payload, stream[at:at+len(p.payload)]) {
			return fmt.Errorf("%d bytes at %d that were not sent", len(p.payload), at)
		}
		seen += len(p.payload)
	}
	if seen < len(stream) {
		return fmt.Errorf("%d bytes of %d", seen, len(stream))
	}
	return nil
}
