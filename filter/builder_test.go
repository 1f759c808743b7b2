package filter

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/opendivert/divert/packet"
)

func TestBuilderText(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	for _, tt := range []struct {
		want string
		expr Condition
	}{
		{"tcp.DstPort = 443 and outbound", TCPDstPort.Eq(443).And(Outbound)},
		{"tcp and (udp or icmp)", TCP.And(UDP.Or(ICMP))},
		{"(tcp and udp) or icmp", TCP.And(UDP).Or(ICMP)},
		{"tcp or udp or icmp", TCP.Or(UDP, ICMP)},
		{"tcp and udp and icmp", TCP.And(UDP.And(ICMP))},
		{"outbound and tcp", Outbound.And(TCP)},
		{"not (tcp.DstPort = 80)", TCPDstPort.Eq(80).Not()},
		{"not tcp", TCP.Not()},
		{"not (tcp.Syn)", TCPSyn.Not()},
		{"not (not (tcp or udp))", TCP.Or(UDP).Not().Not()},
		{"not (tcp or udp) and ip", TCP.Or(UDP).Not().And(IP)},
		{"not (tcp? udp: icmp)", If(TCP, UDP, ICMP).Not()},
		{"(tcp? udp or ip: (ip? true: false))", If(TCP, UDP.Or(IP), If(IP, True, False))},
		{"tcp.DstPort in {80-81, 443}", TCPDstPort.In(443, 80, 81)},
		{"tcp.DstPort = 80", TCPDstPort.In(80)},
		{"false", TCPDstPort.In()},
		{"false", TCPDstPort.Between(2, 1)},
		{"tcp.DstPort in {1-1023}", TCPDstPort.Between(1, 1023)},
		{"ip.SrcAddr = 10.0.0.0/8", IPSrcAddr.In(prefix("10.1.0.0/8"))},
		{"ip.SrcAddr in {10.0.0.0/8, 192.0.2.1}", IPSrcAddr.In(prefix("192.0.2.1/32"), prefix("10.0.0.0/8"))},
		{"ip.SrcAddr in {10.0.0.1-10.0.0.5}", IPSrcAddr.Between(addr("10.0.0.1"), addr("10.0.0.5"))},
		{"ip.SrcAddr = 10.0.0.1", IPSrcAddr.Eq(addr("::ffff:10.0.0.1"))},
		{"ipv6.DstAddr != fe80::1", IPv6DstAddr.Ne(addr("fe80::1"))},
		{"ipv6.DstAddr = ::ffff:10.0.0.1", IPv6DstAddr.Eq(addr("::ffff:10.0.0.1"))},
		{"ipv6.DstAddr = ::ffff:10.0.0.0/104", IPv6DstAddr.In(prefix("::ffff:10.0.0.0/104"))},
		{"remoteAddr in {10.0.0.0/8, 2001:db8::/32}", RemoteAddr.In(prefix("2001:db8::/32"), prefix("10.0.0.0/8"))},
		{"localAddr in {::1, 127.0.0.1}", LocalAddr.OneOf(addr("127.0.0.1"), addr("::1"))},
		{"localAddr in {::fffe:ffff:ffff, 0.0.0.0}", LocalAddr.OneOf(addr("0.0.0.0"), addr("::fffe:ffff:ffff"))},
		{"localAddr = ::/0", LocalAddr.In(prefix("::/0"))},
		{"packet[0b] >= 0x45", Packet(0).Ge(0x45)},
		{"packet16[-2b] != 0x7", Packet16(-1).Ne(7)},
		{"packet32[6b] = 0xdeadbeef", Packet32At(6).Eq(0xdeadbeef)},
		{"tcp.Payload32[4b] = 0x47455420", TCPPayload32(1).Eq(0x47455420)},
		{"udp.Payload16[-3b] in {0x1-0x2}", UDPPayload16At(-3).Between(1, 2)},
		{"priority > -5 and timestamp >= -9223372036854775808", Priority.Gt(-5).And(Timestamp.Ge(math.MinInt64))},
		{"priority = 1 or priority = -1", Priority.In(1, -1)},
		{"event in {ESTABLISHED-DELETED}", Event.In(packet.EventFlowEstablished, packet.EventFlowDeleted)},
		{"layer != SOCKET", HandleLayer.Ne(packet.LayerSocket)},
		{"endpointId = 18446744073709551615", EndpointID.Eq(math.MaxUint64)},
	} {
		t.Run(tt.want, func(t *testing.T) {
			e := conditionOf(tt.expr)
			if got := e.String(); got != tt.want || e.Err() != nil {
				t.Fatalf("got %s, %v", got, e.Err())
			}
			for layer := range packet.NumLayers {
				if p, err := e.Compile(layer); err == nil {
					again := mustCompile(t, p.String(), layer, Extended)
					if again.String() != p.String() {
						t.Errorf("compiled it prints as %v, and that as %v", p, again)
					}
					return
				}
			}
			_, err := e.Compile(packet.LayerNetwork)
			t.Errorf("no layer compiles it: %v", err)
		})
	}
}

func TestBuilderErrors(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fe80::1")
	for _, tt := range []struct {
		name string
		expr Expr
	}{
		{"zero value", Expr{}},
		{"zero value in an and", TCP.And(Expr{})},
		{"nil condition", TCP.Or(nil)},
		{"zero value as the start", Expr{}.And(TCP)},
		{"IPv6 address for IPv4", IPSrcAddr.Eq(v6)},
		{"IPv4 address for IPv6", IPv6SrcAddr.Eq(v4)},
		{"prefix of the other family", IPSrcAddr.In(netip.PrefixFrom(v6, 64))},
		{"no address", LocalAddr.Eq(netip.Addr{})},
		{"no prefix", LocalAddr.In(netip.Prefix{})},
		{"zone", IPv6SrcAddr.Eq(v6.WithZone("eth0"))},
		{"one of several", LocalAddr.OneOf(v4, netip.Addr{})},
		{"range without an end", LocalAddr.Between(v4, netip.Addr{})},
		{"index too great", Packet(65535).Eq(0)},
		{"index too great for the element", Packet32(16384).Eq(0)},
		{"index between the last element and the end", Packet32At(-3).Eq(0)},
		{"index that overflows", Packet32(math.MaxInt).Eq(0)},
		{"index that overflows backwards", Packet32(math.MinInt).Eq(0)},
		{"number that is no field", Number[uint8](200).Eq(1)},
		{"number of an address", Number[uint32](IPSrcAddr).Eq(1)},
		{"flag that is none", Flag(TCPDstPort).And(TCP)},
		{"index of a field that has none", Number[uint16](TCPDstPort | 1<<32).Eq(1)},
		{"address that is none", Addr(TCP).Eq(v4)},
		{"signed number that is none", Signed[int16](TCPDstPort).Eq(-1)},
		{"inside a condition", If(TCP, IPSrcAddr.Eq(v6), UDP).Not()},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.expr.Err() == nil {
				t.Fatalf("no error, text %s", tt.expr)
			}
			if _, err := tt.expr.Compile(packet.LayerNetwork); !errors.Is(err, tt.expr.Err()) {
				t.Errorf("Compile: %v", err)
			}
			if _, err := compiled(tt.expr.String(), packet.LayerNetwork, Extended); err == nil {
				t.Errorf("%s compiles", tt.expr)
			}
		})
	}
}

// TestBuilderChecks: Compile refuses the same errors in an expression as the parser in its text, and names the test.
func TestBuilderChecks(t *testing.T) {
	deep := TCP.Not()
	for range maxNesting {
		deep = deep.And(UDP).Not()
	}
	wide := TCP.Or(UDP)
	for range 16 {
		wide = wide.Or(wide)
	}
	for _, tt := range []struct {
		name  string
		expr  Condition
		layer packet.Layer
		kind  ErrorKind
		text  string
	}{
		{"a value that 4 bits cannot have", IPHdrLength.Eq(20), packet.LayerNetwork, ErrOutOfRange, "ip.HdrLength = 20"},
		{"a range beyond the field", TCP.And(IPHdrLength.Between(10, 16)), packet.LayerNetwork, ErrOutOfRange, "ip.HdrLength in {10-16}"},
		{"never", TCPDstPort.Lt(0), packet.LayerNetwork, ErrOutOfRange, "tcp.DstPort < 0"},
		{"below all priorities", Priority.Lt(-30000), packet.LayerReflect, ErrOutOfRange, "priority < -30000"},
		{"a field of other layers", UDP.Or(If(TCP, True, LocalPort.Eq(1).Not())), packet.LayerForward, ErrBadTokenForLayer, "localPort = 1"},
		{"a flag of other layers", Fragment, packet.LayerSocket, ErrBadTokenForLayer, "fragment"},
		{"nested too deeply", deep, packet.LayerNetwork, ErrTooDeep, ""},
		{"too many tests", wide, packet.LayerNetwork, ErrTooLong, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := conditionOf(tt.expr).Compile(tt.layer)
			var e *Error
			if !errors.As(err, &e) || e.Kind != tt.kind || e.Filter != tt.text {
				t.Fatalf("got %v about %q", err, e.Filter)
			}
			if tt.text == "" {
				return
			}
			_, err = Compile(tt.text, tt.layer, Extended)
			var of *Error
			if !errors.As(err, &of) || of.Kind != e.Kind || of.Hint != e.Hint {
				t.Errorf("got %v, and of the text %v", e, err)
			}
		})
	}
	const foreign = "filter: column 1: event can never be DELETED; layer SOCKET has the events BIND, CONNECT, LISTEN, ACCEPT, CLOSE"
	if _, err := Event.Eq(packet.EventFlowDeleted).Compile(packet.LayerSocket); err == nil || err.Error() != foreign {
		t.Errorf("an event of another layer: %v", err)
	}
	if p, err := Length.Gt(10).Compile(packet.LayerNetwork); err != nil {
		t.Errorf("true of every packet, not wrong: %v, %v", p, err)
	}
}

// TestBuilderLongChain: a chain may be as long as a program makes it, without nesting.
func TestBuilderLongChain(t *testing.T) {
	e := TCPDstPort.Eq(0)
	for i := 1; i < maxTests; i++ {
		e = e.Or(TCPDstPort.Eq(uint16(i)))
	}
	p, err := e.Compile(packet.LayerNetwork)
	if err != nil || p.Len() != maxTests || len(e.String()) < maxTests {
		t.Fatalf("%v", err)
	}
	if err := e.Or(UDP).Err(); kindOf(err) != ErrTooLong {
		t.Errorf("one more: %v", err)
	}
}

// TestBuilderNot tells the negation from the opposite comparison.
func TestBuilderNot(t *testing.T) {
	a := packet.Address{Outbound: true}
	udp := mustHex(t, packetHex["B"])
	for _, tt := range []struct {
		expr Expr
		want bool
	}{
		{TCPDstPort.Eq(80).Not(), true},
		{TCPDstPort.Ne(80), false},
		{TCPDstPort.Eq(80).Not().Not(), false},
		{TCPSyn.Not(), true},
		{UDPDstPort.Eq(53).Not(), false},
		{UDPDstPort.In(5, 9).Not(), true},
	} {
		p, err := tt.expr.Compile(packet.LayerNetwork)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Match(udp, &a); got != tt.want {
			t.Errorf("%s: %v", tt.expr, got)
		}
	}
}

// TestBuilderReachesEveryField compares the constants of the builder with the table of fields.
func TestBuilderReachesEveryField(t *testing.T) {
	loopback := netip.MustParseAddr("::1")
	v4 := netip.MustParseAddr("127.0.0.1")
	all := []Condition{
		True, False, Zero, Inbound, Outbound, Loopback, Impostor, Fragment, IfIdx.Eq(1), SubIfIdx.Eq(1),
		Interface.Eq("eth0"), Process.Eq("curl"),
		ProcessID.Eq(1), LocalAddr.Eq(loopback), RemoteAddr.Eq(loopback), LocalPort.Eq(1), RemotePort.Eq(1),
		Protocol.Eq(1), EndpointID.Eq(1), ParentEndpointID.Eq(1), HandleLayer.Eq(1), Priority.Eq(1), Event.Eq(1),
		Length.Eq(100), Timestamp.Eq(1), Random8.Eq(1), Random16.Eq(1), Random32.Eq(1),
		FlowPackets.Eq(1), FlowBytes.Eq(1), FlowWayPackets.Eq(1), FlowWayBytes.Eq(1),
		Packet(0).Eq(1), Packet16(0).Eq(1), Packet32(0).Eq(1),
		IP, IPHdrLength.Eq(1), IPTOS.Eq(1), IPDSCP.Eq(1), IPv6DSCP.Eq(1), IPLength.Eq(1), IPID.Eq(1), IPDF, IPMF, IPFragOff.Eq(1),
		IPTTL.Eq(1), IPProtocol.Eq(1), IPChecksum.Eq(1), IPSrcAddr.Eq(v4), IPDstAddr.Eq(v4),
		IPv6, IPv6TrafficClass.Eq(1), IPv6FlowLabel.Eq(1), IPv6Length.Eq(1), IPv6NextHdr.Eq(1),
		IPv6HopLimit.Eq(1), IPv6SrcAddr.Eq(loopback), IPv6DstAddr.Eq(loopback),
		ICMP, ICMPType.Eq(1), ICMPCode.Eq(1), ICMPChecksum.Eq(1), ICMPBody.Eq(1),
		ICMPv6, ICMPv6Type.Eq(1), ICMPv6Code.Eq(1), ICMPv6Checksum.Eq(1), ICMPv6Body.Eq(1),
		TCP, TCPSrcPort.Eq(1), TCPDstPort.Eq(1), TCPSeqNum.Eq(1), TCPAckNum.Eq(1), TCPHdrLength.Eq(1),
		TCPUrg, TCPAck, TCPPsh, TCPRst, TCPSyn, TCPFin, TCPWindow.Eq(1), TCPChecksum.Eq(1),
		TCPUrgPtr.Eq(1), TCPPayloadLength.Eq(1), TCPPayload(0).Eq(1), TCPPayload16(0).Eq(1), TCPPayload32(0).Eq(1),
		UDP, UDPSrcPort.Eq(1), UDPDstPort.Eq(1), UDPLength.Eq(1), UDPChecksum.Eq(1), UDPPayloadLength.Eq(1),
		UDPPayload(0).Eq(1), UDPPayload16(0).Eq(1), UDPPayload32(0).Eq(1),
	}
	reached := make(map[string]bool)
	for _, c := range all {
		tree := conditionOf(c).tree
		reached[tree.Test.Field.String()] = true
	}
	for _, f := range Fields() {
		if !reached[f.Name] {
			t.Errorf("no constant for %s", f.Name)
		}
		delete(reached, f.Name)
	}
	for name := range reached {
		t.Errorf("a constant for %s, which is no field", name)
	}
	if slices.ContainsFunc(all, func(c Condition) bool { return conditionOf(c).Err() != nil }) {
		t.Error("one of the expressions is in error")
	}
}

// manyPrefixes returns n networks that do not touch, of IPv4 (/28) or of IPv6 (/56).
func manyPrefixes(n int, six bool) []netip.Prefix {
	list := make([]netip.Prefix, n)
	for i := range list {
		v := uint32(i) << 5
		if six {
			list[i] = netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 3: byte(i >> 16), 4: byte(i >> 8), 5: byte(i)}), 56)
		} else {
			list[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{16 + byte(v>>24), byte(v >> 16), byte(v >> 8), byte(v)}), 28)
		}
	}
	return list
}

// TestBuilderTakesLargeSets compiles sets that have no text: it would be longer than filters may be.
func TestBuilderTakesLargeSets(t *testing.T) {
	const n = 500_000
	ports := make([]uint16, 0, 30_000)
	for i := range 30_000 {
		ports = append(ports, uint16(2*i))
	}
	e := IPSrcAddr.In(manyPrefixes(n, false)...).And(UDPDstPort.In(ports...).Not()).
		Or(IPv6SrcAddr.In(manyPrefixes(n, true)...), TCPDstPort.Eq(80))
	p, err := e.Compile(packet.LayerNetwork)
	if err != nil {
		t.Fatal(err)
	}
	if tests := p.program().Tests(); len(tests) != 4 || len(tests[0].Set.Ranges) != n || len(tests[1].Set.Ranges) != 30_000 || len(tests[2].Set.Ranges) != n {
		t.Fatalf("%d tests", len(tests))
	}
	udp := func(port uint16, src string) []byte {
		a := netip.MustParseAddr(src)
		b := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0}
		b = append(append(b, a.AsSlice()...), 10, 0, 0, 1)
		if a.Is6() {
			b = append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64}, a.AsSlice()...)
			b = append(b, make([]byte, 16)...)
		}
		return append(b, 0, 1, byte(port>>8), byte(port), 0, 8, 0, 0)
	}
	for _, row := range []struct {
		src  string
		port uint16
		want bool
	}{
		{"16.0.0.15", 53, true}, {"16.0.0.15", 54, false}, {"16.0.0.16", 53, false}, {"16.244.36.0", 53, false},
		{"16.244.35.224", 53, true}, {"16.244.35.240", 53, false}, {"16.122.18.0", 53, true},
		{"2001:1:2::1", 54, true}, {"2001:a:2::1", 54, false}, {"2001:0:2:ff::1", 54, true}, {"2001:0:2:100::1", 54, false},
	} {
		if got := p.program().MatchExact(udp(row.port, row.src), &packet.Address{IPv6: row.src[4] == ':'}); got != row.want {
			t.Errorf("%s port %d: %v", row.src, row.port, got)
		}
	}
}
