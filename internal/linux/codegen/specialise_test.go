//go:build linux

package codegen

import (
	"errors"
	"fmt"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

func TestSpecialise(t *testing.T) {
	in, out := Hook{Direction: Inbound}, Hook{Direction: Outbound}
	out.Loopback = LoopbackByInterface
	in4, in6 := in, in
	in4.Family, in6.Family = IPv4, IPv6
	for _, row := range []struct {
		name    string
		filter  string
		hook    Hook
		outcome Outcome
		tests   int
	}{
		{"true", "true", in, Always, 0},
		{"false", "false", in, Never, 0},
		{"the other direction", "outbound and tcp", in, Never, 0},
		{"this direction", "outbound and tcp", out, Depends, 1},
		{"one side of an or", "inbound and tcp or outbound and udp.DstPort == 53", out, Depends, 1},
		{"both sides of an or", "inbound or tcp", in, Always, 0},
		{"a conditional on the direction", "(inbound? tcp.SrcPort == 1: udp.SrcPort == 1)", out, Depends, 1},
		{"loopback never comes in", "loopback", in, Never, 0},
		{"loopback goes out", "loopback", out, Depends, 1},
		{"no impostor", "impostor or tcp", in, Depends, 1},
		{"an event that never is", "event != 0", in, Never, 0},
		{"IPv4 tests at an IPv6 hook", "ip.TTL > 3 or tcp.Syn", in6, Depends, 1},
		{"the family is known", "ip and ip.TTL > 3", in4, Depends, 1},
		{"the family is not", "ip and ip.TTL > 3", in, Depends, 2},
		{"ICMPv6 over IPv4", "icmpv6.Type == 1", in4, Never, 0},
		{"no ICMPv6 over IPv4", "not icmpv6", in4, Always, 0},
		{"a test that does not matter", "tcp.Syn and true or tcp and false", in, Depends, 1},
		{"sub-interfaces do not exist", "subIfIdx == 0", in, Always, 0},
		{"another interface", "ifIdx == 3", in, Never, 0},
		{"the interface is not known", "ifIdx == 3", Hook{Index: IndexDevice}, Depends, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := progtest.Compile(row.filter, packet.LayerNetwork, filter.Strict)
			if err != nil {
				t.Fatal(err)
			}
			tests, outcome := Specialise(p, row.hook)
			if outcome != row.outcome || len(tests) != row.tests {
				t.Errorf("got %d tests, outcome %d: %+v", len(tests), outcome, tests)
			}
		})
	}
}

func TestBuildErrors(t *testing.T) {
	for _, row := range []struct {
		name   string
		filter string
		layer  packet.Layer
		hook   Hook
		want   error
	}{
		{"a layer without packets", "tcp", packet.LayerFlow, Hook{}, &LayerError{packet.LayerFlow}},
		{"an unknown direction", "outbound", packet.LayerNetwork, Hook{}, &FieldError{prog.FieldOutbound}},
		{"an unknown side", "localPort == 3", packet.LayerNetwork, Hook{}, &FieldError{prog.FieldLocalPort}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := progtest.Compile(row.filter, row.layer, filter.Extended)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Build(p, row.hook, here(Options{}))
			var layer *LayerError
			var field *FieldError
			switch want := row.want.(type) {
			case *LayerError:
				if !errors.As(err, &layer) || *layer != *want {
					t.Errorf("got %v, want %v", err, want)
				}
			case *FieldError:
				if !errors.As(err, &field) || *field != *want {
					t.Errorf("got %v, want %v", err, want)
				}
			}
		})
	}
	if _, err := (&Unloaded{Outcome: Never}).Load(); err == nil {
		t.Error("loaded a program that never matches")
	}
}

// TestBuildIsDeterministic builds a filter that has islands twice.
func TestBuildIsDeterministic(t *testing.T) {
	p, err := progtest.Compile(ports(4096), packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	var built [2]*Unloaded
	for i := range built {
		if built[i], err = Build(p, Hook{}, here(Options{})); err != nil {
			t.Fatal(err)
		}
	}
	a, b := built[0].Instructions, built[1].Instructions
	if len(a) < 1<<15 || len(a) != len(b) {
		t.Fatalf("%d and %d instructions", len(a), len(b))
	}
	for i := range a {
		if fmt.Sprint(a[i]) != fmt.Sprint(b[i]) {
			t.Fatalf("instruction %d: %v, then %v", i, a[i], b[i])
		}
	}
}
