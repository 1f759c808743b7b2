package packet

import "testing"

func TestPacketBuffer(t *testing.T) {
	var p Packet
	first := p.Buffer(100)
	if len(first) < 100 {
		t.Fatalf("%d bytes", len(first))
	}
	p.Data = first[:20]
	if again := p.Buffer(60); len(again) < 60 || &again[0] != &first[0] {
		t.Error("a smaller request got other memory")
	}
	p.Data = make([]byte, 10) // the caller's memory
	if again := p.Buffer(100); &again[0] != &first[0] || &again[0] == &p.Data[0] {
		t.Error("the memory followed Data")
	}
	p.Data = first[:20]
	p.Data[0] = 7
	if larger := p.Buffer(101); len(larger) < 101 || &larger[0] == &first[0] {
		t.Errorf("%d bytes", len(larger))
	}
	if len(p.Data) != 20 || p.Data[0] != 7 {
		t.Error("growing lost Data")
	}
	if n := testing.AllocsPerRun(100, func() { p.Buffer(101) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	var empty Packet
	if len(empty.Buffer(0)) != 0 || len(empty.Buffer(-1)) != 0 {
		t.Error("memory for nothing")
	}
}
