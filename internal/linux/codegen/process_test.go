//go:build linux

package codegen

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// keyOf returns the key of a flow, or, without a remote end, of a port.
func keyOf(protocol uint32, local, remote string) []byte {
	ne := binary.NativeEndian
	key := make([]byte, processmap.FlowKeySize)
	put := func(side string, addr, port int16) {
		ap := netip.MustParseAddrPort(side)
		ip := ap.Addr().As16()
		ne.PutUint64(key[addr:], binary.BigEndian.Uint64(ip[0:]))
		ne.PutUint64(key[addr+8:], binary.BigEndian.Uint64(ip[8:]))
		ne.PutUint32(key[port:], uint32(ap.Port()))
	}
	ne.PutUint32(key[processmap.KeyProtocol:], protocol)
	put(local, processmap.KeyLocal, processmap.KeyLocalPort)
	if remote == "" {
		return key[:processmap.PortKeySize]
	}
	put(remote, processmap.KeyRemote, processmap.KeyRemotePort)
	return key
}

// entry is an entry of one of the maps of processes.
type entry struct {
	name     string
	protocol uint32
	local    string // "0.0.0.0" and "::" are all of a family
	remote   string
	process  uint32 // of the holder, in processmap.PortsMap
	holder   int
	until    time.Duration // from now, in processmap.ClosedMap
}

func (e *entry) enter(t *testing.T, p *Program) {
	t.Helper()
	ne := binary.NativeEndian
	m := p.maps[e.name]
	value := make([]byte, m.ValueSize())
	key := keyOf(e.protocol, e.local, e.remote)
	switch e.name {
	case processmap.FlowsMap:
		ne.PutUint32(value[processmap.FlowProcess:], e.process)
	case processmap.PortsMap:
		_ = m.Lookup(key, &value) // others may hold it too
		ne.PutUint64(value[e.holder*processmap.HolderSize+int(processmap.HolderCookie):], uint64(e.holder+1))
		ne.PutUint32(value[e.holder*processmap.HolderSize+int(processmap.HolderProcess):], e.process)
	case processmap.ClosedMap:
		ne.PutUint32(value[processmap.ClosedProcess:], e.process)
		ne.PutUint64(value[processmap.ClosedUntil:], uint64(monotonic(t)+int64(e.until)))
	}
	if err := m.Put(key, value); err != nil {
		t.Fatalf("%+v: %v", e, err)
	}
}

// enterName enters the name of a process.
func enterName(t *testing.T, p *Program, process uint32, name string) {
	t.Helper()
	var value [processmap.NameSize]byte
	copy(value[:], name)
	if err := p.maps[processmap.NamesMap].Put(process, value[:]); err != nil {
		t.Fatal(err)
	}
}

// The packets of packets_test.go have these ends.
const (
	src4, dst4     = "10.0.0.1", "192.0.2.7"
	tcpSrc, tcpDst = ":40000", ":443"
	udpSrc, udpDst = ":5000", ":53"
)

// TestProcess looks packets up.
func TestProcess(t *testing.T) {
	ends6 := header6(protoUDP, nil)
	src6 := "[" + netip.AddrFrom16([16]byte(ends6[8:24])).String() + "]"
	dst6 := "[" + netip.AddrFrom16([16]byte(ends6[24:40])).String() + "]"
	const syn, ack, rst = 2, 0x10, 4
	tcp4 := func(flags byte) []byte { return header4(protoTCP, nil, 0, tcpHeader(5, flags, "")) }
	udp4, udp6 := header4(protoUDP, nil, 0, udpHeader("x")), header6(protoUDP, udpHeader("x"))
	echo := func(kind byte) []byte { return []byte{kind, 0, 0, 0, 0x12, 0x34, 0, 1} }
	closed := entry{name: processmap.ClosedMap, protocol: protoTCP, local: dst4 + tcpDst, remote: src4 + tcpSrc, process: 7, until: time.Hour}
	expired, closedOut := closed, closed
	expired.until = -time.Second
	closedOut.local, closedOut.remote = closed.remote, closed.local
	for _, tt := range []struct {
		name      string
		direction Direction
		packet    []byte
		want      uint32
		entries   []entry
	}{
		{"nobody", Inbound, udp4, 0, nil},
		{"flow", Inbound, udp4, 7, []entry{{name: processmap.FlowsMap, protocol: protoUDP, local: dst4 + udpDst, remote: src4 + udpSrc, process: 7}}},
		{"flow, IPv6", Inbound, udp6, 7, []entry{{name: processmap.FlowsMap, protocol: protoUDP, local: dst6 + udpDst, remote: src6 + udpSrc, process: 7}}},
		{"flow, the other way", Inbound, udp4, 0, []entry{{name: processmap.FlowsMap, protocol: protoUDP, local: src4 + udpSrc, remote: dst4 + udpDst, process: 7}}},
		{"flow of another protocol", Inbound, udp4, 0, []entry{{name: processmap.FlowsMap, protocol: protoTCP, local: dst4 + udpDst, remote: src4 + udpSrc, process: 7}}},
		{"flow of another peer", Inbound, udp4, 0, []entry{{name: processmap.FlowsMap, protocol: protoUDP, local: dst4 + udpDst, remote: "10.0.0.2" + udpSrc, process: 7}}},
		{"port", Inbound, udp4, 7, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: dst4 + udpDst, process: 7}}},
		{"port, IPv6", Inbound, udp6, 7, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: dst6 + udpDst, process: 7}}},
		{"another port", Inbound, udp4, 0, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: dst4 + ":54", process: 7}}},
		{"another address", Inbound, udp4, 0, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: "192.0.2.8" + udpDst, process: 7}}},
		{"any address", Inbound, udp4, 7, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: "0.0.0.0" + udpDst, process: 7}}},
		{"any address of both families", Inbound, udp4, 7, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: "[::]" + udpDst, process: 7}}},
		{"any address, IPv6", Inbound, udp6, 7, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: "[::]" + udpDst, process: 7}}},
		{"any address of IPv4 only", Inbound, udp6, 0, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: "0.0.0.0" + udpDst, process: 7}}},
		{"what the kernel prefers", Inbound, udp4, 1, []entry{
			{name: processmap.PortsMap, protocol: protoUDP, local: "[::]" + udpDst, process: 4},
			{name: processmap.PortsMap, protocol: protoUDP, local: "0.0.0.0" + udpDst, process: 3},
			{name: processmap.PortsMap, protocol: protoUDP, local: dst4 + udpDst, process: 2},
			{name: processmap.FlowsMap, protocol: protoUDP, local: dst4 + udpDst, remote: src4 + udpSrc, process: 1},
		}},
		{"the last holder", Inbound, udp4, 7, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: dst4 + udpDst, process: 7, holder: processmap.Holders - 1}}},
		{"the first of several", Inbound, udp4, 7, []entry{
			{name: processmap.PortsMap, protocol: protoUDP, local: dst4 + udpDst, process: 8, holder: 3},
			{name: processmap.PortsMap, protocol: protoUDP, local: dst4 + udpDst, process: 7, holder: 1},
		}},
		{"closed", Inbound, tcp4(ack), 7, []entry{closed}},
		{"closed, long ago", Inbound, tcp4(ack), 0, []entry{expired}},
		{"closed, but there is a listener", Inbound, tcp4(ack), 8, []entry{closed, {name: processmap.PortsMap, protocol: protoTCP, local: "[::]" + tcpDst, process: 8}}},
		{"echo reply", Inbound, header4(protoICMP, nil, 0, echo(0)), 7, []entry{{name: processmap.PortsMap, protocol: protoICMP, local: "0.0.0.0:4660", process: 7}}},
		{"echo reply, IPv6", Inbound, header6(protoICMPv6, echo(129)), 7, []entry{{name: processmap.PortsMap, protocol: protoICMPv6, local: "[::]:4660", process: 7}}},
		{"echo request", Inbound, header4(protoICMP, nil, 0, echo(8)), 0, []entry{{name: processmap.PortsMap, protocol: protoICMP, local: "0.0.0.0:4660", process: 7}}},
		{"a later fragment", Inbound, header4(protoUDP, nil, 100, udpHeader("x")), 0, []entry{{name: processmap.PortsMap, protocol: protoUDP, local: dst4 + udpDst, process: 7}}},
		{"another protocol", Inbound, header4(132, nil, 0, udpHeader("x")), 0, []entry{{name: processmap.PortsMap, protocol: 132, local: dst4 + udpDst, process: 7}}},
		{"out, of an unknown socket", Outbound, udp4, 0, []entry{
			{name: processmap.PortsMap, protocol: protoUDP, local: src4 + udpSrc, process: 7},
			{name: processmap.FlowsMap, protocol: protoUDP, local: src4 + udpSrc, remote: dst4 + udpDst, process: 8},
		}},
		{"out, the answer to a SYN", Outbound, tcp4(syn | ack), 7, []entry{{name: processmap.PortsMap, protocol: protoTCP, local: src4 + tcpSrc, process: 7}}},
		{"out, a RST at a listener's port", Outbound, tcp4(rst), 0, []entry{{name: processmap.PortsMap, protocol: protoTCP, local: src4 + tcpSrc, process: 7}}},
		{"out, closed", Outbound, tcp4(ack), 7, []entry{closedOut}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, family := range []Family{AnyFamily, familyOf(tt.packet)} {
				h := Hook{Direction: tt.direction, Processes: true, Family: family}
				for _, process := range []uint32{tt.want, tt.want + 1} {
					p := load(t, fmt.Sprintf("processId == %d", process), h, Options{})
					for i := range tt.entries {
						tt.entries[i].enter(t, p)
					}
					wantRun(t, p, tt.packet, process == tt.want)
				}
				for text, want := range map[string]bool{
					fmt.Sprintf(`process == "p%d"`, tt.want):             tt.want != 0,
					fmt.Sprintf(`process != "p%d"`, tt.want):             tt.want == 0,
					fmt.Sprintf(`process in {"p%d", "a", "b"}`, tt.want): tt.want != 0,
					fmt.Sprintf(`process == "p%d"`, tt.want+1):           false,
				} {
					p := load(t, text, h, Options{})
					for i := range tt.entries {
						tt.entries[i].enter(t, p)
					}
					for process := range uint32(10) {
						if process > 0 {
							enterName(t, p, process, fmt.Sprintf("p%d", process))
						}
					}
					wantRun(t, p, tt.packet, want)
				}
			}
		})
	}
}

// TestProcessNameWithAll: there is room on the stack for a name beside all that programs can ask for.
func TestProcessNameWithAll(t *testing.T) {
	const all = `process not in {"a", "b"} and (processId in @s or remoteAddr in @t or random32 > 5) and packet[3] > 0 and not (iface == "x")`
	for name, o := range map[string]Options{
		"sniff":     {Sniff: true, Count: true, Process: true},
		"correlate": {Correlate: true, Count: true, Process: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := load(t, all, Hook{Direction: Inbound, Processes: true}, o)
			wantRun(t, p, header4(protoUDP, nil, 0, udpHeader("x")), !o.Sniff)
		})
	}
}

// TestProcessTold: records and times hold the process.
func TestProcessTold(t *testing.T) {
	port := entry{name: processmap.PortsMap, protocol: protoUDP, local: dst4 + udpDst, process: 7}
	b := header4(protoUDP, nil, 0, udpHeader("x"))
	h := Hook{Direction: Inbound, Processes: true}
	for _, text := range []string{"udp", "processId == 7", "processId == 7 and random32 >= 0"} {
		t.Run(text, func(t *testing.T) {
			p := load(t, text, h, Options{Sniff: true, Count: true, Process: true})
			port.enter(t, p)
			r, err := perf.NewReader(p.Packets(), 1<<16)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			r.SetDeadline(time.Now().Add(5 * time.Second))
			wantRun(t, p, b, false)
			sample, err := r.Read()
			if err != nil {
				t.Fatal(err)
			}
			record, got, _, err := new(Joiner).Decode(sample.RawSample)
			if err != nil || record.Process != 7 || !bytes.Equal(got, b) {
				t.Errorf("%+v, %x, %v", record, got, err)
			}

			p = load(t, text, h, Options{Correlate: true, Count: true, Process: true})
			port.enter(t, p)
			times, err := ringbuf.NewReader(p.Times())
			if err != nil {
				t.Fatal(err)
			}
			defer times.Close()
			times.SetDeadline(time.Unix(1, 0)) // reads do not wait
			wantRun(t, p, b, true)
			told, err := times.Read()
			if err != nil {
				t.Fatal(err)
			}
			if tell, err := DecodeTime(told.RawSample); err != nil || tell.Process != 7 || tell.Hash != packet.Hash(b, 0) {
				t.Errorf("%+v, %v", tell, err)
			}
		})
	}
}

// TestProcessNotToBeKnown builds programs for hooks that know no processes.
func TestProcessNotToBeKnown(t *testing.T) {
	asks, err := progtest.Compile("processId == 7", packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := progtest.Compile("udp", packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		p    *prog.Program
		h    Hook
		o    Options
	}{
		{"no maps", asks, Hook{Direction: Inbound}, Options{}},
		{"no direction", asks, Hook{Processes: true}, Options{}},
		{"no maps to tell from", plain, Hook{Direction: Inbound}, Options{Process: true}},
	} {
		var e *FieldError
		if _, err := Build(tt.p, tt.h, tt.o); !errors.As(err, &e) || e.Field != prog.FieldProcessID {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	// An object string can ask for it where the layer does not have it; then nothing matches.
	forward, err := prog.ParseObject("@WinDiv_WX_1yWWXAX", packet.LayerForward, false)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := Build(forward, Hook{Direction: Outbound, Processes: true}, Options{}); err != nil || u.Outcome != Never {
		t.Errorf("forwarded packets: %v, %v", u, err)
	}
}

// BenchmarkProcess measures what the look-up adds to a program.
func BenchmarkProcess(b *testing.B) {
	udp := header4(protoUDP, nil, 0, udpHeader("x"))
	for _, tt := range []struct {
		name, text string
		h          Hook
	}{
		{"without", "udp and length == 21", Hook{Direction: Inbound}},
		{"miss, inbound", "udp and processId == 1", Hook{Direction: Inbound, Processes: true}},
		{"miss, outbound", "udp and processId == 1", Hook{Direction: Outbound, Processes: true}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			p := load(b, tt.text, tt.h, Options{})
			const repeat = 1 << 16
			var total time.Duration
			for range b.N {
				_, took, err := p.program.Benchmark(frame(udp), repeat, nil)
				if errors.Is(err, ebpf.ErrNotSupported) {
					b.Skip(err)
				}
				if err != nil {
					b.Fatal(err)
				}
				total += took
			}
			b.ReportMetric(float64(total.Nanoseconds())/float64(b.N), "ns/packet")
		})
	}
}
