package packet

import (
	"testing"

	"github.com/opendivert/divert/internal/race"
)

// TestHotPathsAllocateNothing: functions that are called for each packet do not allocate.
func TestHotPathsAllocateNothing(t *testing.T) {
	race.CannotCount(t)
	udp, tcp6, batch := example(t, "B"), example(t, "D"), example(t, "N")
	var p Parsed
	var addr Address
	buf := make([]byte, 0, AddressSize)
	answer := make([]byte, 0, 128)
	edited, edited6 := vouched(example(t, "B")), vouched(example(t, "D"))
	header := Header{Src: near4, Dst: far4}
	var stream Stream
	for name, f := range map[string]func(){
		"Parse":                     func() { p.Parse(tcp6) },
		"ParseExact":                func() { p.ParseExact(udp) },
		"Split":                     func() { countPackets(&p, batch) },
		"views":                     func() { p.Parse(tcp6); p.IPv6(tcp6).SetSrc(p.IPv6(tcp6).Src()); p.TCP(tcp6).SetSeq(1) },
		"CalcChecksums":             func() { CalcChecksums(udp, &addr, 0) },
		"CalcChecksums, no address": func() { CalcChecksums(udp, nil, 0) },
		"WriteTransportChecksum":    func() { p.Parse(udp); p.WriteTransportChecksum(udp) },
		"Hash":                      func() { sink += Hash(tcp6, 1) },
		"DecrementTTL":              func() { tcp6[7] = 9; DecrementTTL(tcp6) },
		"UpdateChecksum128":         func() { sink += uint64(UpdateChecksum128(1, p.IPv6(tcp6).Src().As16(), addr.Flow().LocalAddr.As16())) },
		"AppendReset":               func() { p.Parse(tcp6); answer, _ = AppendReset(answer[:0], tcp6, &p) },
		"AppendUnreachable":         func() { p.Parse(udp); answer, _ = AppendUnreachable(answer[:0], udp, &p, 3) },
		"SetSrc and SetDst":         func() { _ = edited.SetSrc(edited.Dst()); _ = edited.SetDst(edited.Src()) },
		"AppendUDP":                 func() { answer, _ = header.AppendUDP(answer[:0], udp) },
		"Stream.Edit":               func() { _ = stream.Edit(edited6, nil) },
		"Address":                   func() { buf, _ = addr.AppendBinary(buf[:0]); _ = addr.UnmarshalBinary(buf) },
	} {
		p.Parse(tcp6)
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func countPackets(p *Parsed, batch []byte) (n int) {
	for _, ok := range p.Split(batch) {
		if ok {
			n++
		}
	}
	return n
}
