//go:build linux

package eventprog

import (
	"testing"

	"github.com/cilium/ebpf/btf"
)

// TestMember finds members, also those of anonymous structures.
func TestMember(t *testing.T) {
	word := &btf.Int{Name: "unsigned int", Size: 4}
	inner := &btf.Struct{Name: "inner", Size: 8, Members: []btf.Member{{Name: "a", Type: word}, {Name: "b", Type: word, Offset: 32}}}
	union := &btf.Union{Size: 8, Members: []btf.Member{{Name: "whole", Type: inner}, {Type: &btf.Struct{Size: 8, Members: inner.Members}}}}
	outer := &btf.Struct{Name: "outer", Size: 24, Members: []btf.Member{
		{Name: "first", Type: word}, {Type: union, Offset: 64}, {Name: "last", Type: &btf.Typedef{Name: "inner_t", Type: inner}, Offset: 128},
	}}
	for _, tt := range []struct {
		path []string
		at   uint32
		ok   bool
	}{
		{[]string{"first"}, 0, true},
		{[]string{"a"}, 8, true},
		{[]string{"b"}, 12, true},
		{[]string{"whole", "b"}, 12, true},
		{[]string{"last", "b"}, 20, true},
		{[]string{"c"}, 0, false},
		{[]string{"first", "a"}, 0, false},
	} {
		var of btf.Type = outer
		var at, below uint32
		ok := true
		for _, name := range tt.path {
			if ok {
				of, below, ok = member(of, name)
				at += below
			}
		}
		if ok != tt.ok || ok && at != tt.at {
			t.Errorf("%v: %d, %v", tt.path, at, ok)
		}
	}
}

// TestKernelLayout finds the offsets that the programs need in the running kernel, if that has type information.
func TestKernelLayout(t *testing.T) {
	if _, err := btf.LoadKernelSpec(); err != nil {
		t.Skip(err)
	}
	l, err := kernelLayout()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int16]string{}
	for name, at := range map[string]int16{
		"net": l.net, "family": l.family, "state": l.state, "local4": l.local4, "local6": l.local6,
		"port": l.port, "cookie": l.cookie, "protocol": l.protocol,
	} {
		if other, twice := seen[at]; twice || at < 0 {
			t.Errorf("%s is at offset %d, as %s", name, at, other)
		}
		seen[at] = name
	}
}
