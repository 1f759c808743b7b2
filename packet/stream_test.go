package packet

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

var (
	streamClient = netip.MustParseAddrPort("10.0.0.1:40000")
	streamServer = netip.MustParseAddrPort("10.0.0.2:80")
)

// streamPacket returns a segment with correct checksums that its address vouches for.
func streamPacket(t testing.TB, src, dst netip.AddrPort, s Segment, payload []byte) *Packet {
	t.Helper()
	h := Header{Src: src, Dst: dst}
	b, err := h.AppendTCP(nil, s, payload)
	if err != nil {
		t.Fatal(err)
	}
	return &Packet{Data: b, Addr: Address{IPChecksum: true, TCPChecksum: true}}
}

// streamEdit gives a packet to a Stream and checks that its checksums are right once Send has computed the missing ones.
func streamEdit(t testing.TB, s *Stream, p *Packet, change func([]byte) []byte) TCP {
	t.Helper()
	if err := s.Edit(p, change); err != nil {
		t.Fatal(err)
	}
	var h Parsed
	if !h.ParseExact(p.Data) {
		t.Fatalf("not a packet: %x", p.Data)
	}
	if !p.Addr.TCPChecksum {
		h.WriteTransportChecksum(p.Data)
	}
	if !h.VerifyIPChecksum(p.Data) || !h.VerifyTransportChecksum(p.Data) {
		t.Fatalf("wrong checksums: %x", p.Data)
	}
	return h.TCP(p.Data)
}

func replacer(old, by string) func([]byte) []byte {
	return func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(old), []byte(by)) }
}

func TestStreamNumbers(t *testing.T) {
	c, v := uint32(0xFFFFFFF0), uint32(1000) // first sequence numbers; the client's wraps
	ws := []byte{3, 3, 2}                    // windows in units of 4
	var s Stream
	steps := []struct {
		name     string
		client   bool
		in       Segment
		payload  string
		change   func([]byte) []byte
		seq, ack uint32
		window   uint16
		out      string
		options  []byte
	}{
		{"SYN", true, Segment{Seq: c, Flags: TCPSyn, Window: 100, Options: ws}, "", nil, c, 0, 100, "", nil},
		{"SYN of the server", false, Segment{Seq: v, Ack: c + 1, Flags: TCPSyn | TCPAck, Window: 100, Options: ws}, "", nil, v, c + 1, 100, "", nil},
		{"longer", true, Segment{Seq: c + 1, Ack: v + 1, Flags: TCPAck, Window: 100}, "a cat!", replacer("cat", "elephant"), c + 1, v + 1, 100, "a elephant!", nil},
		{"an acknowledgment overtakes data", true, Segment{Seq: c + 500, Ack: v + 1, Flags: TCPAck, Window: 100}, "", nil, c + 505, v + 1, 100, "", nil},
		{"behind it", true, Segment{Seq: c + 7, Ack: v + 1, Flags: TCPAck, Window: 100}, "xyz", nil, c + 12, v + 1, 100, "xyz", nil},
		{"sent again in other pieces", true, Segment{Seq: c + 3, Ack: v + 1, Flags: TCPAck, Window: 100}, "cat!xy", replacer("cat", "dog"), c + 3, v + 1, 100, "elephant!xy", nil},
		{"sent again from its middle", true, Segment{Seq: c + 4, Ack: v + 1, Flags: TCPAck, Window: 100}, "at", nil, c + 6, v + 1, 100, "phant", nil},
		{"acknowledged in part", false, Segment{Seq: v + 1, Ack: c + 6, Flags: TCPAck, Window: 100}, "", nil, v + 1, c + 4, 54, "", nil},
		{"selectively", false, Segment{Seq: v + 1, Ack: c + 1, Flags: TCPAck, Window: 100, Options: []byte{1, 1, 5, 18, 255, 255, 255, 244, 255, 255, 255, 246, 255, 255, 255, 252, 255, 255, 255, 255}}, "", nil, v + 1, c + 1, 54,
			"", []byte{1, 1, 5, 10, 255, 255, 255, 247, 255, 255, 255, 250, 1, 1, 1, 1, 1, 1, 1, 1}},
		{"selectively, in its middle", false, Segment{Seq: v + 1, Ack: c + 1, Flags: TCPAck, Window: 100, Options: []byte{1, 1, 5, 10, 255, 255, 255, 244, 255, 255, 255, 246}}, "", nil, v + 1, c + 1, 54,
			"", []byte{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
		{"acknowledged", false, Segment{Seq: v + 1, Ack: c + 15, Flags: TCPAck, Window: 100}, "ok", replacer("ok", ""), v, c + 10, 54, "", nil},
		{"what was deleted is acknowledged", true, Segment{Seq: c + 10, Ack: v + 1, Flags: TCPAck, Window: 100}, "", nil, c + 15, v + 3, 100, "", nil},
		{"goes on", false, Segment{Seq: v + 3, Ack: c + 15, Flags: TCPAck | TCPFin, Window: 100}, "end", nil, v + 1, c + 10, 54, "end", nil},
		{"the end is acknowledged", true, Segment{Seq: c + 10, Ack: v + 5, Flags: TCPAck | TCPFin, Window: 100}, "", nil, c + 15, v + 7, 100, "", nil},
		{"reset", true, Segment{Seq: c + 11, Flags: TCPRst}, "", replacer("", "x"), c + 16, 0, 0, "", nil},
	}
	for _, step := range steps {
		src, dst := streamServer, streamClient
		if step.client {
			src, dst = dst, src
		}
		p := streamPacket(t, src, dst, step.in, []byte(step.payload))
		got := streamEdit(t, &s, p, step.change)
		if got.Seq() != step.seq || got.Ack() != step.ack || got.Window() != step.window || string(p.Payload()) != step.out {
			t.Errorf("%s: seq %d, ack %d, window %d, %q; want %d, %d, %d, %q", step.name,
				got.Seq(), got.Ack(), got.Window(), p.Payload(), step.seq, step.ack, step.window, step.out)
		}
		if step.options != nil && !bytes.Equal(got.Options(), step.options) {
			t.Errorf("%s: options %v, want %v", step.name, got.Options(), step.options)
		}
	}
}

func TestStreamErrors(t *testing.T) {
	var s Stream
	syn := func() *Packet {
		return streamPacket(t, streamClient, streamServer, Segment{Seq: 1, Flags: TCPSyn}, nil)
	}
	if err := s.Edit(syn(), nil); err != nil {
		t.Fatal(err)
	}
	data := func(payload []byte) *Packet {
		return streamPacket(t, streamClient, streamServer, Segment{Seq: 2, Ack: 9, Flags: TCPAck}, payload)
	}
	udp, err := (&Header{Src: streamClient, Dst: streamServer}).AppendUDP(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cut := data([]byte("payload"))
	cut.Data = cut.Data[:len(cut.Data)-1]
	for _, row := range []struct {
		name string
		p    *Packet
		want error
	}{
		{"UDP", &Packet{Data: udp}, ErrMalformed},
		{"cut short", cut, ErrMalformed},
		{"a fragment", &Packet{Data: change(data([]byte("payload")).Data, 6, 0x20)}, ErrFragment},
		{"another connection", streamPacket(t, streamClient, netip.MustParseAddrPort("10.0.0.3:80"), Segment{Seq: 2}, nil), ErrOtherStream},
		{"grown too long", data([]byte("payload")), ErrTooLong},
		{"behind a gap", streamPacket(t, streamClient, streamServer, Segment{Seq: 3, Ack: 9, Flags: TCPAck}, []byte("payload")), ErrGap},
	} {
		before := bytes.Clone(row.p.Data)
		if err := s.Edit(row.p, func([]byte) []byte { return make([]byte, 65536) }); !errors.Is(err, row.want) || !bytes.Equal(row.p.Data, before) {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
	}
	// No edit remains.
	if p := data([]byte("payload")); streamEdit(t, &s, p, nil) == nil || string(p.Payload()) != "payload" {
		t.Errorf("the payload is %q", p.Payload())
	}
}

func TestStreamManyEdits(t *testing.T) {
	var s Stream
	double := func(b []byte) []byte { return append(bytes.Clone(b), b...) }
	for i := range uint32(maxEdits) {
		p := streamPacket(t, streamClient, streamServer, Segment{Seq: i, Flags: TCPAck}, []byte("x"))
		if got := streamEdit(t, &s, p, double); got.Seq() != 2*i {
			t.Fatalf("sequence number %d of the segment %d", got.Seq(), i)
		}
	}
	p := streamPacket(t, streamClient, streamServer, Segment{Seq: maxEdits, Flags: TCPAck}, []byte("x"))
	if err := s.Edit(p, double); !errors.Is(err, ErrTooManyEdits) {
		t.Fatal(err)
	}
	streamEdit(t, &s, streamPacket(t, streamServer, streamClient, Segment{Ack: 2 * maxEdits, Flags: TCPAck}, nil), nil)
	if got := streamEdit(t, &s, p, double); got.Seq() != 2*maxEdits {
		t.Fatalf("sequence number %d after an acknowledgment", got.Seq())
	}
}

// A connection over a bad network: segments of any size, lost, doubled, late, retransmitted in other pieces, edited on
// the way. The receiver must get the edited data, and the sender must learn that it has arrived.
func TestStreamBadNetwork(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { streamBadNetwork(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func FuzzStreamBadNetwork(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) { streamBadNetwork(t, rand.New(rand.NewPCG(a, b))) })
}

func streamBadNetwork(t *testing.T, r *rand.Rand) {
	const window = 400
	data := make([]byte, 2000)
	for i := range data {
		data[i] = 'a' + byte(r.IntN(4))
	}
	first, firstBack := r.Uint32(), r.Uint32() // the first bytes' sequence numbers
	var s Stream
	wanted := map[int][]byte{} // the new bytes at each changed index
	sizes := map[int]int{}
	at := 0 // start of the edited segment
	edit := func(fresh []byte) []byte {
		by := bytes.ReplaceAll(fresh, []byte("ab"), []byte("12345"))
		by = bytes.ReplaceAll(by, []byte("ccc"), nil)
		by = bytes.ReplaceAll(by, []byte("d"), []byte("D"))
		wanted[at], sizes[at] = by, len(fresh)
		return by
	}
	recv := &reassembly{next: first}
	var back []*Packet
	una := 0
	for round := 0; una < len(data); round++ {
		if round > 100000 {
			t.Fatalf("no progress behind byte %d", una)
		}
		begin := una
		if r.IntN(3) > 0 {
			begin += r.IntN(min(window, len(data)-una))
		}
		end := min(begin+1+r.IntN(60), len(data), una+window)
		p := streamPacket(t, streamClient, streamServer, Segment{Seq: first + uint32(begin), Ack: firstBack, Flags: TCPAck, Window: 1000}, data[begin:end])
		at = begin
		if s.half[0].known {
			at = max(begin, int(s.half[0].gone)+int(s.half[0].base-first))
		}
		if err := s.Edit(p, edit); errors.Is(err, ErrGap) {
			continue // lost
		} else if err != nil {
			t.Fatal(err)
		}
		for range 1 + r.IntN(2) { // doubled at times
			if r.IntN(4) > 0 { // lost at times
				recv.take(t, p)
			}
		}
		var sack []byte
		if len(recv.later) > 0 {
			for start, b := range recv.later {
				sack = be.AppendUint32(be.AppendUint32([]byte{1, 1, 5, 10}, start), start+uint32(len(b)))
				break
			}
		}
		back = append(back, streamPacket(t, streamServer, streamClient, Segment{Seq: firstBack, Ack: recv.next, Flags: TCPAck, Window: 1000, Options: sack}, nil))
		if len(back) > 5 || r.IntN(2) == 0 {
			i := r.IntN(len(back))
			a := back[i]
			back = slices.Delete(back, i, i+1)
			got := streamEdit(t, &s, a, edit)
			acked := int(int32(got.Ack() - first))
			if acked > len(data) {
				t.Fatalf("byte %d of %d is acknowledged", acked, len(data))
			}
			una = max(una, acked)
		}
	}
	var want []byte
	for i := 0; i < len(data); {
		if by, ok := wanted[i]; ok {
			want = append(want, by...)
			i += sizes[i]
			continue
		}
		want = append(want, data[i])
		i++
	}
	if !bytes.Equal(recv.got, want) {
		t.Fatalf("received %q, want %q", recv.got, want)
	}
}

// reassembly is a receiver that keeps segments that come early.
type reassembly struct {
	next  uint32
	got   []byte
	later map[uint32][]byte
}

func (r *reassembly) take(t testing.TB, p *Packet) {
	t.Helper()
	var h Parsed
	h.Parse(p.Data)
	if r.later == nil {
		r.later = map[uint32][]byte{}
	}
	if b := p.Payload(); len(b) > len(r.later[h.TCP(p.Data).Seq()]) {
		r.later[h.TCP(p.Data).Seq()] = bytes.Clone(b)
	}
	for again := true; again; {
		again = false
		for seq, b := range r.later {
			old := int32(r.next - seq)
			if old < 0 {
				continue
			}
			delete(r.later, seq)
			if int(old) < len(b) {
				r.got = append(r.got, b[old:]...)
				r.next += uint32(len(b)) - uint32(old)
			}
			again = true
		}
	}
}
