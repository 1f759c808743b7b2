//go:build linux

package codegen

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// A packet without a connection matches whether programs check for clones or not. The live tests of multicast show what programs
// do with clones.
func TestCloneCheckLetsOthersMatch(t *testing.T) {
	requireBPF(t)
	check, err := FindCloneCheck()
	if err != nil {
		t.Skip(err)
	}
	p, err := progtest.Compile("udp", packet.LayerNetwork, filter.Strict)
	if err != nil {
		t.Fatal(err)
	}
	u, err := Build(p, Hook{Direction: Outbound}, here(Options{Clones: check}))
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewClones()
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	loaded, err := u.LoadInto(o, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	udp := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 239, 0, 0, 1, 0, 9, 0, 9, 0, 8, 0, 0}
	got, err := loaded.program.Run(&ebpf.RunOptions{Data: frame(udp)})
	if err != nil || got != 1 {
		t.Errorf("returned %d, %v", got, err)
	}
	if n, err := o.CloneCount(); n != 0 || err != nil {
		t.Errorf("%d clones, %v", n, err)
	}
}

func TestFindMember(t *testing.T) {
	word := &btf.Int{Size: 8}
	members := []btf.Member{
		{Name: "first", Type: word},
		{Type: &btf.Union{Members: []btf.Member{
			{Name: "second", Type: word}, {Type: &btf.Struct{Members: []btf.Member{{Name: "pad", Type: word}, {Name: "third", Type: word, Offset: 64}}}},
		}}, Offset: 64},
	}
	for _, row := range []struct {
		name string
		at   uint32
		ok   bool
	}{{"first", 0, true}, {"second", 8, true}, {"third", 16, true}, {"fourth", 0, false}} {
		if at, ok := findMember(members, row.name); ok != row.ok || at != row.at {
			t.Errorf("%q: %d, %t", row.name, at, ok)
		}
	}
}
