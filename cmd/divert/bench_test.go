package main

import (
	"bufio"
	"io"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/race"
)

// benchSinks are the sinks that must not allocate for each packet.
func benchSinks(t testing.TB) map[string]sink {
	t.Helper()
	w := bufio.NewWriterSize(io.Discard, bufferSize)
	capture, err := newCaptureWriter(w, "true")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]sink{
		"capture file": &fileSink{w: w, capture: capture},
		"text":         &textSink{w: w, printer: &printer{}},
		"fields":       &textSink{w: w, printer: &printer{verbose: 1, bytes: bytesBoth, colour: true}},
	}
}

// received returns the samples as if a handle had received them.
func received() (ps []divert.Packet, names interfaces) {
	for _, s := range samples {
		p := divert.Packet{Data: s.data, Addr: divert.Address{Timestamp: clock.Now(), Outbound: true}}
		ps = append(ps, p)
	}
	return ps, interfaces{0: "eth0"}
}

func TestDumpAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	ps, names := received()
	clock := newWallClock()
	for name, s := range benchSinks(t) {
		d := dump{sink: s}
		r := &record{live: true}
		n := testing.AllocsPerRun(100, func() {
			for i := range ps {
				r.set(&ps[i], clock, names)
				if _, err := d.show(r); err != nil {
					t.Fatal(err)
				}
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for %d packets", name, n, len(ps))
		}
	}
}

func BenchmarkDump(b *testing.B) {
	ps, names := received()
	clock := newWallClock()
	for name, s := range benchSinks(b) {
		b.Run(name, func(b *testing.B) {
			d := dump{sink: s}
			r := &record{live: true}
			b.ReportAllocs()
			for i := range b.N {
				r.set(&ps[i%len(ps)], clock, names)
				if _, err := d.show(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
