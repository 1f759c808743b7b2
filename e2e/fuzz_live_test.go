//go:build linux

package e2e_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// FuzzLivePath sends packets through a router between two TUN devices: each once past a handle, and once through it.
// The program accepts, sends on, changes or drops the packet. Both results must be equal, except for the changes.
func FuzzLivePath(f *testing.F) {
	f.Add(byte(0), byte(0), byte(packet.ProtocolUDP), []byte("\x0f\xa0\x00\x09\x00\x10\x00\x00payload."), uint16(0))
	f.Add(byte(1), byte(1), byte(packet.ProtocolTCP), []byte("\x0f\xa0\x00\x50\x00\x00\x00\x01\x00\x00\x00\x00\x50\x02\x20\x00\x00\x00\x00\x00"), uint16(4))
	f.Add(byte(2), byte(0), byte(packet.ProtocolUDP), []byte("\x0f\xa0\x00\x09\x00\x10\x00\x00payload."), uint16(9))
	f.Add(byte(0x82), byte(0), byte(44), []byte("\x11\x00\x00\x01\x00\x00\x00\x07rest of a datagram"), uint16(9))
	f.Add(byte(3), byte(1), byte(packet.ProtocolUDP), []byte("\x94\x04\x00\x00with a router alert"), uint16(1))
	f.Add(byte(0x83), byte(0), byte(packet.ProtocolHopByHop), []byte("\x3b\x00\x01\x04\x00\x00\x00\x00"), uint16(1))
	f.Add(byte(4), byte(0), byte(packet.ProtocolICMP), []byte("\x08\x00\x00\x00\x00\x01\x00\x01"), uint16(3))
	r := newTunnels(f, 0)
	f.Fuzz(r.try)
}

// The program's action on a packet.
const (
	editAccept = iota
	editSend
	editFlip  // a byte after the IP header
	editShort // removes the last byte
	editDrop
	numEdits
)

// tunnels is a router between two TUN devices, with handles for packets from one of two sources.
type tunnels struct {
	h       *lab.Host
	in, out *lab.TUN
	handles []*divert.Handle // in the order in which they receive packets
	number  uint64
}

// The sources and destinations of packets: through the handle, and past it.
var (
	tunnelSource = map[bool]map[bool]netip.Addr{
		false: {true: netip.MustParseAddr("10.91.0.2"), false: netip.MustParseAddr("10.91.0.3")},
		true:  {true: netip.MustParseAddr("fd91::2"), false: netip.MustParseAddr("fd91::3")},
	}
	tunnelEnd = map[bool]netip.Addr{false: netip.MustParseAddr("10.92.0.2"), true: netip.MustParseAddr("fd92::2")}
)

func newTunnels(f *testing.F, priorities ...int16) *tunnels {
	n := lab.NewT(f)
	h, err := n.AddRouter("r")
	if err != nil {
		f.Fatal(err)
	}
	needEngine(f, h, divert.EngineKernel) // packets that the interpreter lets go on overtake those that match
	r := &tunnels{h: h}
	for name, at := range map[string]struct {
		tun    **lab.TUN
		v4, v6 string
	}{"tun0": {&r.in, "10.91.0.1/24", "fd91::1/64"}, "tun1": {&r.out, "10.92.0.1/24", "fd92::1/64"}} {
		tun, err := h.AddTUN(name, netip.MustParsePrefix(at.v4), netip.MustParsePrefix(at.v6))
		if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
			f.Skip(err)
		}
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { tun.Close() })
		*at.tun = tun
	}
	for _, priority := range priorities {
		if err := h.Do(func() error {
			d, err := divert.Open("ip.SrcAddr == 10.91.0.2 or ipv6.SrcAddr == fd91::2", divert.WithLayer(divert.LayerForward), divert.WithPriority(priority))
			r.handles = append(r.handles, d)
			return err
		}); err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { r.handles[0].Close(); r.handles = r.handles[1:] })
	}
	return r
}

// tunnelPacket makes a packet from the fuzzer's input, nil if two runs cannot be compared with it.
func tunnelPacket(v6, through bool, options, protocol byte, payload []byte) []byte {
	payload = payload[:min(len(payload), 1200)]
	src, dst := tunnelSource[v6][through].AsSlice(), tunnelEnd[v6].AsSlice()
	var b []byte
	if v6 {
		b = make([]byte, packet.IPv6HeaderLen, packet.IPv6HeaderLen+len(payload))
		b[0], b[1], b[6], b[7] = 0x60, options, protocol, 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		copy(b[8:], src)
		copy(b[24:], dst)
		return append(b, payload...)
	}
	words := int(options % 11) // options, taken from the beginning of the payload
	if len(payload) < 4*words {
		return nil
	}
	b = make([]byte, packet.IPv4HeaderLen, packet.IPv4HeaderLen+len(payload))
	b[0], b[8], b[9] = 0x45+byte(words), 64, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(packet.IPv4HeaderLen+len(payload)))
	binary.BigEndian.PutUint16(b[4:], 7)
	if options >= 0xC0 {
		binary.BigEndian.PutUint16(b[6:], uint16(options)&0x2F) // a fragment
	}
	copy(b[12:], src)
	copy(b[16:], dst)
	b = append(b, payload...)
	if bytes.IndexByte(b[packet.IPv4HeaderLen:packet.IPv4HeaderLen+4*words], 68) >= 0 {
		return nil // the kernel writes the time into such an option (RFC 791, Internet timestamp)
	}
	return sumHeader(b)
}

// sumHeader corrects the checksum of an IPv4 header.
func sumHeader(b []byte) []byte {
	if b[0]>>4 != 4 {
		return b
	}
	b[10], b[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < int(b[0]&0xF)*4; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xFFFF
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return b
}

// change changes a packet as the program does, and reports whether the packet goes on.
func change(b []byte, edit int, at uint16) ([]byte, bool) {
	header := packet.IPv6HeaderLen
	if b[0]>>4 == 4 {
		header = int(b[0]&0xF) * 4
	}
	switch rest := len(b) - header; {
	case edit == editDrop:
		return nil, false
	case rest == 0 || b[0]>>4 == 6 && b[6] == packet.ProtocolHopByHop:
		return b, true // no bytes follow that the router ignores
	case edit == editFlip:
		b[header+int(at)%rest] ^= 0x55
	case edit == editShort:
		b = b[:len(b)-1]
		if b[0]>>4 == 4 {
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		} else {
			binary.BigEndian.PutUint16(b[4:], uint16(len(b)-packet.IPv6HeaderLen))
		}
		sumHeader(b)
	}
	return b, true
}

// try sends a packet both ways.
func (r *tunnels) try(t *testing.T, edit, options, protocol byte, payload []byte, at uint16) {
	v6, what := edit&0x80 != 0, int(edit&0x7F)%numEdits
	through, past := tunnelPacket(v6, true, options, protocol, payload), tunnelPacket(v6, false, options, protocol, payload)
	if through == nil {
		return
	}
	arrives := len(r.cross(t, slices.Clone(past), nil)) != 0 // otherwise the router drops it before the handle
	past, on := change(past, what, at)
	var want [][]byte
	if on && arrives {
		want = r.cross(t, past, nil)
	}
	got := r.cross(t, through, func(d *divert.Handle, p *divert.Packet) error {
		p.Addr.IPChecksum, p.Addr.TCPChecksum, p.Addr.UDPChecksum = true, true, true // the checksums are as intended
		if what == editAccept {
			return d.Accept(p)
		}
		b, on := change(p.Data, what, at)
		if p.Data = b; !on {
			p.Data = through
			return d.Drop(p)
		}
		return d.Send(p)
	})
	if !sameBehind(got, want) {
		t.Fatalf("edit %d: through the handle %x, past it %x", what, got, want)
	}
}

// sameBehind reports whether the same packets came out through the handles as past them.
func sameBehind(through, past [][]byte) bool {
	for _, b := range slices.Concat(through, past) {
		source(b)
	}
	return slices.EqualFunc(through, past, bytes.Equal)
}

// source sets a packet's source to the one whose packets go through the handle.
func source(b []byte) {
	if b[0]>>4 == 6 {
		copy(b[8:], tunnelSource[true][true].AsSlice())
		return
	}
	copy(b[12:], tunnelSource[false][true].AsSlice())
	sumHeader(b)
}

// cross sends a packet and runs program on it if a handle receives it. It returns the packets that come out before a
// marker sent later, which passes the handles: when a write returns, its packet has either gone on or waits.
func (r *tunnels) cross(t *testing.T, b []byte, program func(*divert.Handle, *divert.Packet) error) (out [][]byte) {
	t.Helper()
	if _, err := r.in.Write(b); err != nil {
		return nil // no packet to the kernel
	}
	for _, d := range r.handles {
		if program == nil {
			break
		}
		s, err := d.Stats()
		if err != nil {
			t.Fatal(err)
		}
		for range s.Waiting {
			var ps [1]divert.Packet
			if _, err := d.RecvBatch(ps[:]); err != nil {
				t.Fatal(err)
			}
			if err := program(d, &ps[0]); err != nil {
				t.Fatalf("%x: %v", ps[0].Data, err)
			}
		}
	}
	r.number++
	last := craft(t, tunnelSource[false][false].String(), tunnelEnd[false].String(), 9, binary.BigEndian.AppendUint64([]byte("the last"), r.number))
	if _, err := r.in.Write(last); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, 2000); ; {
		if err := r.out.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := r.out.Read(buf)
		if err != nil {
			t.Fatalf("behind %x: %v", b, err)
		}
		switch got := slices.Clone(buf[:n]); {
		case bytes.HasSuffix(got, last[len(last)-16:]):
			return out
		case got[0]>>4 == 6 && bytes.Equal(got[24:40], tunnelEnd[true].AsSlice()), got[0]>>4 == 4:
			out = append(out, got) // others are IPv6 packets of the system itself
		}
	}
}

// FuzzForeignRules gives the router rules of another program and sends packets through two handles and past them: the
// results are equal, and each handle sees a packet once.
func FuzzForeignRules(f *testing.F) {
	for hook := range byte(3) {
		f.Add(false, []byte{hook, 3, ruleMark | 3<<4, 77, hook, 11, rulePriority | 2<<4, 200, ruleCount | 1<<4, 0})
		f.Add(true, []byte{hook, 0, ruleAccept, 0, hook, 17, ruleDrop | 1<<4, 0})
		f.Add(false, []byte{hook, 5, ruleLifetime | 2<<4, 9, ruleNoTrack | 1<<4, 0, hook, 7, rulePriority | 5<<4, 1, ruleJump, 0})
	}
	r := newTunnels(f, 1, 0)
	f.Fuzz(r.tryRules)
}

// The action of another program's rule, in the lower four bits of a byte.
const (
	ruleCount = iota
	ruleAccept
	ruleDrop // datagrams to foreignPort
	ruleMark
	rulePriority
	ruleLifetime // sets the TTL or hop limit
	ruleNoTrack
	ruleTrack // matches on connections, so that packets are tracked
	ruleJump  // to a chain that sets a mark
	numRules
)

// foreignPort is the destination port in FuzzForeignRules.
const foreignPort = 4000

// tryRules makes rules from bytes and sends a packet both ways. Two bytes give the hook and priority of a chain. Each
// further pair is a rule; if the upper bits of its first byte are not 0, another rule of the chain follows.
func (r *tunnels) tryRules(t *testing.T, v6 bool, choices []byte) {
	hooks := []*nftables.ChainHook{nftables.ChainHookPrerouting, nftables.ChainHookForward, nftables.ChainHookPostrouting}
	priorities := []nftables.ChainPriority{-1 << 31, -450, -401, -400, -399, -300, -225, -200, -150, -100, -1, 0, 1, 50, 100, 225, 300, 1<<31 - 1}
	nft(t, r.h, func(c *nftables.Conn) {
		c.AddTable(foreign)
		c.DelTable(foreign)
		c.AddTable(foreign)
		side := c.AddChain(&nftables.Chain{Name: "side", Table: foreign})
		c.AddRule(&nftables.Rule{Table: foreign, Chain: side, Exprs: foreignRule(ruleMark, 1, v6)})
		for n := 0; n < 6 && len(choices) >= 2; n++ {
			hook, priority := hooks[int(choices[0])%len(hooks)], priorities[int(choices[1])%len(priorities)]
			choices = choices[2:]
			var exprs [][]expr.Any
			for more := true; more && len(choices) >= 2; choices = choices[2:] {
				exprs = append(exprs, foreignRule(int(choices[0]&0xF)%numRules, choices[1], v6))
				more = choices[0]>>4 > 0 && len(exprs) < 5
			}
			foreignChain(c, fmt.Sprint("chain", n), hook, nftables.ChainTypeFilter, priority, exprs...)
		}
	})
	payload := binary.BigEndian.AppendUint16([]byte{0x30, 0x39}, foreignPort)
	payload = append(payload, 0, 16, 0, 0, 'p', 'a', 'y', 'l', 'o', 'a', 'd', '.')
	want := r.cross(t, tunnelPacket(v6, false, 0, packet.ProtocolUDP, payload), nil)
	met := map[*divert.Handle]int{}
	got := r.cross(t, tunnelPacket(v6, true, 0, packet.ProtocolUDP, payload), func(d *divert.Handle, p *divert.Packet) error {
		met[d]++
		return d.Send(p)
	})
	if !sameBehind(got, want) {
		t.Fatalf("through the handles %x, past them %x", got, want)
	}
	if n := met[r.handles[0]]; n != met[r.handles[1]] || n > 1 || n < len(got) {
		t.Fatalf("the handles saw the packet %d and %d times; %d came out", n, met[r.handles[1]], len(got))
	}
}

// foreignRule is a rule of another program.
func foreignRule(what int, value byte, v6 bool) []expr.Any {
	set := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(value) << (value % 25))},
			&expr.Meta{Key: key, SourceRegister: true, Register: 1},
		}
	}
	switch what {
	case ruleAccept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	case ruleDrop:
		return udpTo(foreignPort, &expr.Verdict{Kind: expr.VerdictDrop})
	case ruleMark:
		return set(expr.MetaKeyMARK)
	case rulePriority:
		return set(expr.MetaKeyPRIORITY)
	case ruleLifetime:
		family, at, sum := byte(unix.NFPROTO_IPV4), uint32(8), expr.CsumTypeInet
		if v6 {
			family, at, sum = unix.NFPROTO_IPV6, 7, expr.CsumTypeNone
		}
		// Two bytes, the field and its neighbour, since the header's checksum covers both.
		e := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		}
		b := []byte{32 + value%64, packet.ProtocolUDP}
		if v6 {
			at, b = 6, []byte{packet.ProtocolUDP, 32 + value%64}
		}
		return append(e,
			&expr.Immediate{Register: 1, Data: b},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: 2, CsumType: sum, CsumOffset: 10})
	case ruleNoTrack:
		return []expr.Any{&expr.Notrack{}}
	case ruleTrack:
		return []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitINVALID), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
			&expr.Counter{},
		}
	case ruleJump:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "side"}}
	}
	return []expr.Any{&expr.Counter{}}
}

// FuzzHandles makes the calls of the model of internal/linux/order on handles of this process, as the fuzzer chooses.
func FuzzHandles(f *testing.F) {
	for seed := range byte(4) {
		f.Add(bytes.Repeat([]byte{seed, 7 * seed, 0x55, 3}, 30))
	}
	pair := lab.TwoHostsT(f, lab.LinkOptions{})
	needEngine(f, pair.A, divert.EngineKernel)
	f.Fuzz(func(t *testing.T, choices []byte) {
		r := rand.New(&chosen{choices})
		sc := scenario(r, true)
		for i := range sc.Handles {
			sc.Handles[i].End = 0 // a process for each would take too long
		}
		followScenario(t, pair, "outbound", divert.EngineKernel, sc, r)
	})
}

// chosen is a source of numbers that the fuzzer chooses.
type chosen struct{ bytes []byte }

func (c *chosen) Uint64() (v uint64) {
	n := min(2, len(c.bytes))
	for i, b := range c.bytes[:n] {
		v |= uint64(b) << (56 - 24*i) // rand uses the upper bits of both halves
	}
	c.bytes = c.bytes[n:]
	return v
}
