//go:build linux

package codegen

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/packet"
)

// whichSlot returns the slot of an entry that decides on a packet, -1 if none does. The packet may be one of 2 segments.
func whichSlot(t *testing.T, gate Gate, take Take, segments, super bool, device uint32, b []byte) int {
	t.Helper()
	e, err := NewEntry(cursor.NewKey(0, 0), gate, segments, take)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for slot := range NumSlots {
		var programs [NumSlots]*Program
		programs[slot] = load(t, "true", Hook{}, Options{})
		if err := e.Set(programs); err != nil {
			t.Fatal(err)
		}
		context := skb{Ifindex: device}
		if super {
			binary.NativeEndian.PutUint32(context.Rest[skbGSOSegs-44:], 2)
			binary.NativeEndian.PutUint32(context.Rest[skbGSOSize-44:], 1)
		}
		result, err := e.programs[take].Run(&ebpf.RunOptions{Data: frame(b), Context: context})
		if err != nil {
			t.Fatal(err)
		}
		if result != 0 {
			return int(slot)
		}
	}
	return -1
}

// TestEntryChooses: packets that are whole are decided on by the program for them, TCP apart from the rest.
func TestEntryChooses(t *testing.T) {
	requireBPF(t)
	tcp4, udp4 := header4(protoTCP, nil, 0, tcpHeader(5, 2, "abc")), header4(protoUDP, nil, 0, udpHeader("abc"))
	tcp6, udp6 := header6(protoTCP, tcpHeader(5, 2, "abc")), header6(protoUDP, udpHeader("abc"))
	behind := header6(protoDestination, extensions(1, protoTCP, tcpHeader(5, 2, "abc")))
	big := header6(protoHopByHop, append([]byte{protoTCP, 0, 0xC2, 4, 0, 1, 0, 0}, tcpHeader(5, 2, "abc")...))
	const none = Slot(NumSlots)
	kinds := []struct {
		name     string
		take     Take
		segments bool
	}{
		{"streams", TakeStreams, false}, {"rest", TakeRest, false}, {"all", TakeAll, false}, {"sure", TakeSure, false}, {"doubt", TakeDoubt, false},
		{"rest with segments", TakeRest, true}, {"all with segments", TakeAll, true}, {"sure with segments", TakeSure, true},
	}
	streams := []Slot{SlotWhole, none, SlotWhole, SlotWhole, none, SlotRest, SlotWhole, SlotWhole}
	other := []Slot{none, SlotRest, SlotWhole, SlotWhole, none, SlotRest, SlotWhole, SlotWhole}
	superStream := []Slot{SlotWhole, none, SlotWhole, SlotWhole, none, SlotCut, SlotCut, SlotSure}
	superOther := []Slot{none, SlotCut, SlotCut, SlotSure, SlotCut, SlotCut, SlotCut, SlotSure}
	routed := header6(protoRouting, extensions(2, protoTCP, tcpHeader(5, 2, "abc")))
	routed[lenIPv6] = protoHopByHop
	many := header6(protoDestination, extensions(maxBehind+1, protoTCP, tcpHeader(5, 2, "abc")))
	datagram := header6(protoDestination, extensions(1, protoUDP, udpHeader("abc")))
	authentic := header6(protoAH, extensions(1, protoTCP, tcpHeader(5, 2, "abc")))
	cut := header6(protoDestination, extensions(1, protoTCP, nil)[:lenExtension-1])
	// The program of the ways in turns away packets of the loopback interface, on which the kernel runs test programs unless it
	// is given another.
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	device := uint32(pair.LinkA.Index())
	for _, row := range []struct {
		name            string
		b               []byte
		stream, inbound bool // is a stream: at all, on the way in
	}{
		{"TCP", tcp4, true, true}, {"UDP", udp4, false, false}, {"TCP over IPv6", tcp6, true, true}, {"UDP over IPv6", udp6, false, false},
		{"TCP behind an extension header", behind, false, true}, {"BIG TCP", big, true, true},
		{"TCP behind several", routed, false, true}, {"TCP behind too many", many, false, false},
		{"UDP behind an extension header", datagram, false, false}, {"TCP behind authentication", authentic, false, false},
		{"an extension header that is cut", cut, false, false},
	} {
		for gate, stream := range map[Gate]bool{NoGate: row.stream, NotLoopback: row.inbound} {
			for _, super := range []bool{false, true} {
				want := map[[2]bool][]Slot{
					{true, false}: streams, {false, false}: other, {true, true}: superStream, {false, true}: superOther,
				}[[2]bool{stream, super}]
				for i, k := range kinds {
					var got int
					if err := pair.A.Do(func() error { got = whichSlot(t, gate, k.take, k.segments, super, device, row.b); return nil }); err != nil {
						t.Fatal(err)
					}
					if got != int(want[i]) && (got != -1 || want[i] != none) {
						t.Errorf("%s, gate %d, superpacket %v, rule for %s: slot %d, want %d", row.name, gate, super, k.name, got, want[i])
					}
				}
			}
		}
	}
}

// TestFlows compares a program's reports on single packets with package packet.
func TestFlows(t *testing.T) {
	p := load(t, "true", Hook{}, Options{Correlate: true, Flow: true})
	r, err := ringbuf.NewReader(p.Times())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.SetDeadline(time.Unix(1, 0)) // reads do not wait
	for _, b := range samplePackets() {
		var parsed packet.Parsed
		if !parsed.ParseExact(b) {
			continue
		}
		wantRun(t, p, b, true)
		record, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		told, err := DecodeTime(record.RawSample)
		if want := parsed.FlowHash(b); err != nil || told.Flow != want || told.Length != uint32(len(b)) || told.SegmentSize != 0 {
			t.Errorf("packet %.100x: %+v, %v, want the hash %x", b, told, err, want)
		}
	}
}
