//go:build linux

package codegen

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/linux/flowmap"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// flowPrograms are the two programs of a handle that decides flows: the one before, which drops, and the one of its filter.
type flowPrograms struct {
	maps          *flowmap.Maps
	drop, program *Program
}

// coarseHere reports whether programs can read the coarse clock.
func coarseHere() bool {
	return features.HaveProgramHelper(ebpf.SocketFilter, asm.FnKtimeGetCoarseNs) == nil
}

func loadFlowPrograms(t testing.TB, text string, h Hook) *flowPrograms {
	t.Helper()
	requireBPF(t)
	f, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	ps := &flowPrograms{}
	if ps.maps, err = flowmap.New(100, flow.DefaultIdle); err != nil {
		t.Fatal(err)
	}
	for _, table := range []string{flowmap.Decided, flowmap.Counted} {
		if err := ps.maps.Make(table); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { ps.maps.Close() })
	load := func(use FlowUse) *Program {
		of := f
		if use == FlowDropped {
			of = f.Uncounted()
		}
		u, err := Build(of, h, Options{Flows: use, Bounded: Loops.Err() != nil, CoarseClock: coarseHere()})
		if err != nil {
			t.Fatal(err)
		}
		p, err := u.WithFlows(ps.maps).Load()
		if err != nil {
			t.Fatalf("%+v", err)
		}
		t.Cleanup(func() { p.Close() })
		return p
	}
	ps.drop, ps.program = load(FlowDropped), load(FlowAccepted)
	return ps
}

// decide answers as the rules of a handle do.
func (ps *flowPrograms) decide(b []byte) (flow.Verdict, bool, error) {
	if yes, err := run(ps.drop, b); yes || err != nil {
		return flow.Drop, true, err
	}
	yes, err := run(ps.program, b)
	return flow.Undecided, yes, err
}

// age makes time pass for the records.
func (ps *flowPrograms) age(by time.Duration) error {
	older := func(r *flow.Record) {
		if r.LastSeen -= int64(by); r.Deadline != 0 {
			r.Deadline = max(1, r.Deadline-int64(by))
		}
	}
	err := changeAll(ps.maps.Named(flowmap.Decided), func(e *flowmap.Entry) { older(&e.Record) })
	if err != nil {
		return err
	}
	return changeAll(ps.maps.Named(flowmap.Counted), older)
}

// changeAll changes each value of a map of flows.
func changeAll[V any](m *ebpf.Map, change func(*V)) error {
	values := map[flow.Key]V{}
	var k flow.Key
	var v V
	each := m.Iterate()
	for each.Next(&k, &v) {
		values[k] = v
	}
	if err := each.Err(); err != nil {
		return err
	}
	for k, v := range values {
		change(&v)
		if err := m.Put(&k, &v); err != nil {
			return err
		}
	}
	return nil
}

// flowPackets are packets of a few flows, in both directions, and of none.
func flowPackets(t testing.TB) [][]byte {
	var all [][]byte
	add := func(b []byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	for _, ends := range [][2]string{
		{"10.0.0.1:1000", "10.0.0.2:80"}, {"10.0.0.1:1001", "10.0.0.2:80"}, {"10.0.0.1:7", "10.0.0.1:7"},
		{"[fd00::1]:1000", "[fd00::2]:80"}, {"[fd00::1:0:0:1]:80", "[fd00::1]:80"},
	} {
		a, b := netip.MustParseAddrPort(ends[0]), netip.MustParseAddrPort(ends[1])
		for range 2 {
			h := packet.Header{Src: a, Dst: b}
			add(h.AppendUDP(nil, []byte("payload")))
			for _, flags := range []packet.TCPFlags{
				packet.TCPSyn, packet.TCPSyn | packet.TCPAck, packet.TCPAck, packet.TCPAck | packet.TCPPsh, packet.TCPFin | packet.TCPAck, packet.TCPRst,
			} {
				add(h.AppendTCP(nil, packet.Segment{Flags: flags}, []byte("x")))
			}
			a, b = b, a
		}
		icmp := func(kind byte, id uint16) {
			body := make([]byte, 16)
			body[0] = kind
			binary.BigEndian.PutUint16(body[4:], id)
			protocol := byte(packet.ProtocolICMP)
			if a.Addr().Is6() {
				protocol = packet.ProtocolICMPv6
			}
			add(rawPacket(a.Addr(), b.Addr(), protocol, body), nil)
			a, b = b, a
		}
		for _, kind := range []byte{8, 0, 128, 129, 3, 1} {
			icmp(kind, 5)
			icmp(kind, 6)
		}
	}
	fragment := append([]byte(nil), all[0]...)
	fragment[6] |= 0x20 // more follow
	return append(all, fragment)
}

// rawPacket is an IP packet with a body.
func rawPacket(src, dst netip.Addr, protocol byte, body []byte) []byte {
	var b []byte
	if src.Is4() {
		b = []byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64, protocol, 0, 0}
	} else {
		b = []byte{0x60, 0, 0, 0, 0, byte(len(body)), protocol, 64}
	}
	return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), body...)
}

// flowFilters are the filters of TestFlowsModel.
var flowFilters = []string{
	"tcp or udp.DstPort != 7 or icmp or icmpv6",
	"(flow.Packets <= 3 and flow.WayPackets != 2 or flow.Bytes > 500 or flow.WayBytes in {100-200, 300}) and udp.DstPort != 7",
	"not flow.Packets <= 6 or ip and flow.Bytes == 56",
}

// TestFlowsModel plays random sequences of packets and calls through the programs and through the table for engines in user
// space: both must answer the same, and count the same.
func TestFlowsModel(t *testing.T) {
	seed := rand.Uint64()
	for i, text := range flowFilters {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		b := make([]byte, 20000)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		playFlows(t, text, b, fmt.Sprintf("%s, seed %d", text, seed))
	}
}

func FuzzFlows(f *testing.F) {
	f.Add(0, []byte{0, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, text int, script []byte) {
		playFlows(t, flowFilters[uint(text)%uint(len(flowFilters))], script[:min(len(script), 4000)], "fuzz")
	})
}

// firstOf returns the counts of the first packet of a flow, nil if it belongs to none.
func firstOf(b []byte, parsed *packet.Parsed) *flow.Counts {
	if _, ok := flow.Find(b, parsed); !ok {
		return nil
	}
	n := uint64(len(b))
	return &flow.Counts{Packets: 1, Bytes: n, WayPackets: 1, WayBytes: n}
}

func playFlows(t *testing.T, text string, script []byte, name string) {
	ps := loadFlowPrograms(t, text, Hook{})
	f, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	table := flow.NewTable(100, flow.DefaultIdle)
	packets := flowPackets(t)
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var later int64 // how much time has been made to pass
	now := func() int64 { return monotonic(t) + later }
	// matches is what engines in user space do, see engine.FlowTable.
	matches := func(b []byte, parsed *packet.Parsed, p *flow.Packet, known bool) bool {
		if known {
			table.Begin(p)
		}
		if !known || !f.CountsFlows() {
			return f.MatchKnown(b, parsed, &packet.Address{}, prog.Known{HasCounts: true})
		}
		if table.Dropped(p, now()) {
			return f.Uncounted().MatchParsed(b, parsed, &packet.Address{})
		}
		c := table.Count(p, now())
		return f.MatchKnown(b, parsed, &packet.Address{}, prog.Known{HasCounts: true, Counts: &c})
	}
	for at := 0; at+1 < len(script); at += 2 {
		op, b := script[at], packets[int(script[at+1])%len(packets)]
		var parsed packet.Parsed
		if !parsed.Parse(b) {
			t.Fatal("a packet of the test is none")
		}
		p, known := flow.Find(b, &parsed)
		switch {
		case op < 200 || !known && op < 240 || !known && op >= 248 && op < 253:
			got, came, err := ps.decide(b)
			ok(err)
			matches := matches(b, &parsed, &p, known)
			want := flow.Undecided
			if known && matches {
				want = table.Pass(&p, now())
			}
			wantCame := matches && want != flow.Accept
			if (got == flow.Drop) != (want == flow.Drop) || came != wantCame {
				t.Fatalf("%s, step %d: packet % x: kernel %v %v, table %v (matches: %v)", name, at, b, got, came, want, matches)
			}
		case op < 240:
			v := flow.Accept + flow.Verdict(op&1)
			ok(ps.maps.Decide(&p.Key, v))
			table.Decide(p.Key, v, now())
		case op < 248:
			// No sum of these is a limit: the programs' clock is behind by a tick.
			age := [...]time.Duration{1310 * time.Millisecond, 3117 * time.Millisecond, 62 * time.Second, 6 * time.Minute, 3 * time.Hour}[int(script[at+1])%5]
			ok(ps.age(age))
			later += int64(age)
		case op < 253:
			had, err := ps.maps.Forget(&p.Key)
			ok(err)
			if want := table.Forget(p.Key, now()); had != want {
				t.Fatalf("%s, step %d: forget: kernel %v, table %v", name, at, had, want)
			}
		case op == 253:
			ok(ps.maps.Revoke())
			table.Revoke()
		default:
			ok(ps.maps.ForgetAll())
			table.ForgetAll()
		}
		if known && (op < 240 || op >= 248) {
			got, has, err := ps.maps.Get(&p.Key)
			ok(err)
			want, wants := table.Get(p.Key, now())
			got.LastSeen, got.Generation, want.LastSeen, want.Generation = 0, 0, 0, 0
			near := (got.Deadline == 0) == (want.Deadline == 0)
			got.Deadline, want.Deadline = 0, 0
			if has != wants || has && (got != want || !near) {
				t.Fatalf("%s, step %d: record: kernel %+v %v, table %+v %v", name, at, got, has, want, wants)
			}
		}
	}
	got, err := ps.maps.Totals()
	ok(err)
	if want := table.Totals(); got != want {
		t.Errorf("%s: totals: kernel %+v, table %+v", name, got, want)
	}
}

// TestFlowSizes: a superpacket counts as the packets that the handle would receive.
func TestFlowSizes(t *testing.T) {
	const ack = 16
	tcp := tcpHeader(5, ack, "abc")
	big := header6(protoHopByHop, append([]byte{protoTCP, 0, 0xC2, 4, 0, 1, 0, 0}, tcp...))
	behind := header6(protoDestination, extensions(1, protoTCP, tcp))
	for _, row := range []struct {
		name    string
		b       []byte
		in, out uint64 // packets, if TCP is received in superpackets
	}{
		{"TCP", header4(protoTCP, nil, 0, tcp), 1, 1},
		{"TCP behind options", header4(protoTCP, []byte{1, 1, 1, 1}, 0, tcp), 3, 3},
		{"UDP", header4(protoUDP, nil, 0, udpHeader("abc")), 3, 3},
		{"TCP over IPv6", header6(protoTCP, tcp), 1, 1},
		{"UDP over IPv6", header6(protoUDP, udpHeader("abc")), 3, 3},
		{"BIG TCP", big, 1, 1},
		{"TCP behind an extension header", behind, 1, 3},
	} {
		for _, direction := range []Direction{Inbound, Outbound} {
			streams := map[Direction]uint64{Inbound: row.in, Outbound: row.out}[direction]
			for sizes, want := range map[FlowSizes]uint64{FlowWhole: 1, FlowStreams: streams, FlowSegments: 3} {
				ps := loadFlowPrograms(t, "true", Hook{})
				u, err := Build(compiled(t, "true"), Hook{Direction: direction}, here(Options{Flows: FlowAccepted, FlowSizes: sizes, CoarseClock: coarseHere()}))
				if err != nil {
					t.Fatal(err)
				}
				program, err := u.WithFlows(ps.maps).Load()
				if err != nil {
					t.Fatal(err)
				}
				defer program.Close()
				var parsed packet.Parsed
				parsed.Parse(row.b)
				p, ok := flow.Find(row.b, &parsed)
				if !ok {
					t.Fatalf("%s has no flow", row.name)
				}
				if err := ps.maps.Decide(&p.Key, flow.Accept); err != nil {
					t.Fatal(err)
				}
				for super, want := range map[bool]uint64{false: 1, true: want} {
					before, err := ps.maps.Totals()
					if err != nil {
						t.Fatal(err)
					}
					context := skb{}
					if super {
						binary.NativeEndian.PutUint32(context.Rest[skbGSOSegs-44:], 3)
						binary.NativeEndian.PutUint32(context.Rest[skbGSOSize-44:], 1)
					}
					if result, err := program.program.Run(&ebpf.RunOptions{Data: frame(row.b), Context: context}); result != 0 || err != nil {
						t.Fatalf("%s: the answer is %d (%v), want that the flow is accepted", row.name, result, err)
					}
					after, err := ps.maps.Totals()
					if err != nil {
						t.Fatal(err)
					}
					headers := uint64(len(row.b) - len("abc"))
					if got := after.Accepted - before.Accepted; got != want || after.AcceptedBytes-before.AcceptedBytes != want*headers+3 {
						t.Errorf("%s, direction %d, sizes %d, superpacket %v: %d packets, %d bytes, want %d packets",
							row.name, direction, sizes, super, got, after.AcceptedBytes-before.AcceptedBytes, want)
					}
				}
			}
		}
	}
}

// BenchmarkFlows measures a packet of 64 bytes in a program that follows verdicts: with one, without, and where the filter
// counts.
func BenchmarkFlows(b *testing.B) {
	packets := flowPackets(b)
	datagram := packets[0]
	var parsed packet.Parsed
	parsed.Parse(datagram)
	p, _ := flow.Find(datagram, &parsed)
	for _, row := range []struct {
		name, text string
		use        FlowUse
		verdict    flow.Verdict
	}{
		{"no flows", "udp", NoFlows, flow.Undecided},
		{"undecided", "udp", FlowAccepted, flow.Undecided},
		{"accepted", "udp", FlowAccepted, flow.Accept},
		{"dropped", "udp", FlowDropped, flow.Drop},
		{"not dropped", "udp", FlowDropped, flow.Undecided},
		{"counted", "udp and flow.Packets <= 6", NoFlows, flow.Undecided},
	} {
		b.Run(row.name, func(b *testing.B) {
			ps := loadFlowPrograms(b, row.text, Hook{Direction: Inbound})
			program := map[FlowUse]*Program{FlowAccepted: ps.program, FlowDropped: ps.drop}[row.use]
			if program == nil {
				u, err := Build(compiled(b, row.text), Hook{Direction: Inbound}, here(Options{CoarseClock: coarseHere()}))
				if err != nil {
					b.Fatal(err)
				}
				if program, err = u.WithFlows(ps.maps).Load(); err != nil {
					b.Fatal(err)
				}
				defer program.Close()
			}
			if row.verdict != flow.Undecided {
				if err := ps.maps.Decide(&p.Key, row.verdict); err != nil {
					b.Fatal(err)
				}
			}
			_, took, err := program.program.Benchmark(frame(datagram), b.N, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/op")
		})
	}
}

// BenchmarkDecide measures a verdict: for flows that are new, and for one flow again and again.
func BenchmarkDecide(b *testing.B) {
	requireBPF(b)
	for name, others := range map[string]bool{"new": true, "again": false} {
		b.Run(name, func(b *testing.B) { benchmarkDecide(b, others) })
	}
}

func benchmarkDecide(b *testing.B, others bool) {
	m, err := flowmap.New(flow.DefaultSize, flow.DefaultIdle)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	b.ReportAllocs()
	for i := uint64(0); b.Loop(); i++ {
		if !others {
			i = 0
		}
		if err := m.Decide(&flow.Key{Addrs: [4]uint64{1: i}, Protocol: 17, Family: 4}, flow.Accept); err != nil {
			b.Fatal(err)
		}
	}
}
