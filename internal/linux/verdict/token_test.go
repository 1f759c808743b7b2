//go:build linux

package verdict

import (
	"bytes"
	"testing"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

func TestTokenSurvivesTheCLayout(t *testing.T) {
	for _, want := range []token{
		{},
		{tag: 1, id: 2, priority: 3, ifIdx: 4, dst: [16]byte{5}, hook: queue.HookPrerouting, gso: true, severed: true, lane: 6, sums: 7, digest: 8, place: 9},
		{tag: 1<<32 - 1, id: 1<<32 - 1, priority: 1<<32 - 1, ifIdx: 1<<32 - 1, dst: [16]byte{0: 255, 15: 255}, six: true, bridged: true, hook: 255, lane: 255,
			sums: 255, digest: 1<<64 - 1, place: 1<<32 - 1},
	} {
		a := packet.Address{Timestamp: 1, Outbound: true}
		a.SetNetwork(packet.NetworkData{IfIdx: 0xaabbccdd, SubIfIdx: 0x11223344})
		want.put(&a)
		b, err := a.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var back packet.Address
		if err := back.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if got := tokenOf(&back); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if back != a || back.Network() != (packet.NetworkData{IfIdx: 0xaabbccdd, SubIfIdx: 0x11223344}) {
			t.Errorf("the address changed: %+v, %+v", back, a)
		}
	}
}

func TestTokenHolds(t *testing.T) {
	out, in := unhex(t, tcp4), unhex(t, tcp6)
	elsewhere := bytes.Clone(out)
	elsewhere[19]++
	inElsewhere := bytes.Clone(in)
	inElsewhere[39]++
	rows := []struct {
		name     string
		hook     queue.Hook
		outbound bool
		ifIdx    uint32
		b        []byte
		want     bool
	}{
		{"outbound as it was", queue.HookPostrouting, true, 7, out, true},
		{"outbound over another interface, which Send ignores", queue.HookPostrouting, true, 9, out, true},
		{"outbound to somewhere else", queue.HookPostrouting, true, 7, elsewhere, false},
		{"outbound turned round", queue.HookPostrouting, false, 7, out, false},
		{"forwarded as it was", queue.HookForward, true, 7, out, true},
		{"forwarded to somewhere else", queue.HookForward, true, 7, elsewhere, false},
		{"inbound as it was", queue.HookPrerouting, false, 7, in, true},
		{"inbound to somewhere else, which routing will see", queue.HookPrerouting, false, 7, inElsewhere, true},
		{"inbound on another interface", queue.HookPrerouting, false, 9, in, false},
		{"outbound, of the other family", queue.HookPostrouting, true, 7, in, false},
		{"inbound, of the other family, which the kernel would read as its own", queue.HookPrerouting, false, 7, out, false},
		{"inbound turned round", queue.HookPrerouting, true, 7, in, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			captured := out
			if row.hook == queue.HookPrerouting {
				captured = in
			}
			k := token{hook: row.hook, ifIdx: 7, dst: destination(captured), six: isIPv6(captured)}
			a := packet.Address{Outbound: row.outbound}
			a.SetNetwork(packet.NetworkData{IfIdx: row.ifIdx})
			if got := k.holds(row.b, &a); got != row.want {
				t.Errorf("%t", got)
			}
		})
	}
}

func TestDestination(t *testing.T) {
	four, six := unhex(t, tcp4), unhex(t, tcp6)
	if destination(four) == [16]byte{} || destination(six) == [16]byte{} || destination(four) == destination(six) {
		t.Error("destinations do not differ")
	}
	for _, b := range [][]byte{nil, four[:19], six[:39], {0x50, 39: 0}} {
		if d := destination(b); d != [16]byte{} {
			t.Errorf("%x has the destination %x", b, d)
		}
	}
	for i := range four[:20] {
		changed := bytes.Clone(four)
		changed[i] ^= 1 // the version stays 4 also in the first byte, whose high nibble is another bit
		if differs := destination(changed) != destination(four); differs != (i >= 16) {
			t.Errorf("byte %d: differs %t", i, differs)
		}
	}
}

func FuzzToken(f *testing.F) {
	k := token{tag: 1, id: 2, hook: queue.HookForward, dst: destination(unhex(f, tcp4))}
	var a packet.Address
	k.put(&a)
	b, err := a.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, unhex(f, tcp4))
	f.Add(make([]byte, packet.AddressSize), []byte{0x60})
	f.Fuzz(func(t *testing.T, addr, data []byte) {
		var a packet.Address
		if a.UnmarshalBinary(addr) != nil {
			return
		}
		k := tokenOf(&a)
		again := a
		k.put(&again)
		if tokenOf(&again) != k || again.Network() != a.Network() || again.Outbound != a.Outbound {
			t.Errorf("%+v, written again %+v", k, tokenOf(&again))
		}
		if k.holds(data, &a) && a.Outbound != k.outbound() {
			t.Error("holds for the other direction")
		}
	})
}
