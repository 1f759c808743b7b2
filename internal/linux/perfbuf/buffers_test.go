//go:build linux

package perfbuf

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// live is an outlet with a program that copies UDP packets to it, and the buffers.
type live struct {
	*Buffers
	outlet  *codegen.Outlet
	program *ebpf.Program
}

func openLive(t testing.TB, size, watermark int) *live {
	t.Helper()
	outlet, err := codegen.NewOutlet()
	if errors.Is(err, os.ErrPermission) || errors.Is(err, ebpf.ErrNotSupported) {
		t.Skipf("needs CAP_BPF: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outlet.Close() })
	compiled, err := progtest.Compile("udp", packet.LayerNetwork, filter.Strict)
	if err != nil {
		t.Fatal(err)
	}
	unloaded, err := codegen.Build(compiled, codegen.Hook{}, codegen.Options{Sniff: true, Count: true, Tag: 9, Bounded: codegen.Loops.Err() != nil})
	if err != nil {
		t.Fatal(err)
	}
	loaded, err := unloaded.LoadInto(outlet, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { loaded.Close() })
	fd, err := unix.FcntlInt(uintptr(loaded.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	program, err := ebpf.NewProgramFromFD(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	buffers, err := Open(outlet, size, watermark)
	if errors.Is(err, os.ErrPermission) {
		t.Skipf("needs CAP_PERFMON: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { buffers.Close() })
	return &live{buffers, outlet, program}
}

// run makes the program see a datagram with a payload so often, on the processor of the calling thread.
func (l *live) run(t testing.TB, payload string, times int) {
	t.Helper()
	length := 28 + len(payload)
	ip := []byte{0x45, 0, byte(length >> 8), byte(length), 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
	udp := []byte{0, 1, 0, 2, byte((length - 20) >> 8), byte(length - 20), 0, 0}
	frame := append(append(append(make([]byte, 12), 8, 0), ip...), udp...)
	if _, err := l.program.Run(&ebpf.RunOptions{Data: append(frame, payload...), Repeat: uint32(times)}); err != nil {
		t.Fatal(err)
	}
}

func monotonic() int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return now.Nano()
}

// onProcessor runs f on a processor, or skips the test.
func onProcessor(t testing.TB, cpu int, f func()) {
	t.Helper()
	if err := lab.OnProcessor(cpu, func() error { f(); return nil }); err != nil {
		t.Skipf("processor %d: %v", cpu, err)
	}
}

// payloads takes the waiting samples and returns their payloads.
func (l *live) payloads(t testing.TB) (got []string) {
	t.Helper()
	if err := l.Look(monotonic()); err != nil {
		t.Fatal(err)
	}
	var joiner codegen.Joiner
	for {
		if _, ok := l.Next(); !ok {
			l.Release()
			return got
		}
		sample := make([]byte, l.Size())
		l.Take(sample)
		record, data, ok, err := joiner.Decode(sample)
		if err != nil || !ok || record.Tag != 9 {
			t.Fatalf("%+v, %v, %v", record, ok, err)
		}
		got = append(got, string(data[28:]))
	}
}

// TestLiveOrder runs the program on one processor after the other.
func TestLiveOrder(t *testing.T) {
	l := openLive(t, 1<<16, 1<<15)
	var want []string
	for i := range 100 {
		onProcessor(t, i%runtime.NumCPU(), func() { l.run(t, fmt.Sprint(i), 1) })
		want = append(want, fmt.Sprint(i))
	}
	if got := l.payloads(t); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

// TestLiveFull fills a buffer several times: samples without room are counted, released ones make room.
func TestLiveFull(t *testing.T) {
	const times = 5000
	l := openLive(t, 1<<16, 1<<15)
	onProcessor(t, 0, func() {
		got := 0
		for range 3 {
			l.run(t, "0123456789", times)
			got += len(l.payloads(t))
		}
		l.run(t, "the last", 1) // whose buffer first tells how many were lost
		got += len(l.payloads(t))
		c, err := l.outlet.Counter()
		if err != nil || c.Matched != 3*times+1 || c.Failed == 0 || c.Failed+uint64(got) != c.Matched || l.Lost() != c.Failed {
			t.Errorf("%d taken, %d lost, %+v, %v", got, l.Lost(), c, err)
		}
		if got < 3*(1<<16)/128 {
			t.Errorf("only %d found room", got)
		}
	})
}

// TestLiveWait waits for the watermark, the time, and Wake, which counts if nobody waits yet.
func TestLiveWait(t *testing.T) {
	l := openLive(t, 1<<16, 1<<12)
	wait := func(d time.Duration) time.Duration {
		begin := time.Now()
		over, err := l.Wait(d)
		if took := time.Since(begin); err != nil || over != (took >= d) {
			t.Fatalf("over %v after %v, %v", over, took, err)
		}
		return time.Since(begin)
	}
	l.run(t, "below the watermark", 1)
	if took := wait(20 * time.Millisecond); took < 20*time.Millisecond {
		t.Errorf("returned after %v, want 20 ms", took)
	}
	if got := l.payloads(t); len(got) != 1 {
		t.Errorf("got %q", got)
	}
	l.run(t, "above it", 100)
	if took := wait(time.Minute); took > 30*time.Second {
		t.Errorf("was not woken for %v", took)
	}
	if got := l.payloads(t); len(got) != 100 {
		t.Errorf("got %d", len(got))
	}
	if err := l.Wake(); err != nil {
		t.Fatal(err)
	}
	if took := wait(time.Minute); took > 30*time.Second {
		t.Errorf("was not woken for %v", took)
	}
	if took := wait(20 * time.Millisecond); took < 20*time.Millisecond {
		t.Errorf("woken twice, after %v", took)
	}
	l.run(t, "nobody sleeps", 1)
	if took := wait(20 * time.Millisecond); took < 20*time.Millisecond || l.Rung() != 0 {
		t.Errorf("the bell has rung for a reader that is awake, after %v", took)
	}
	for range 3 {
		l.Sleep()
		l.run(t, "below the watermark", 5)
		if took := wait(time.Minute); took > 30*time.Second {
			t.Errorf("was not woken for %v", took)
		}
	}
	if n := l.Rung(); n != 3 {
		t.Errorf("the bell has rung %d times, want 3", n)
	}
	if took := wait(20 * time.Millisecond); took < 20*time.Millisecond {
		t.Errorf("woken once more, after %v", took)
	}
	l.Sleep()
	l.Awake()
	l.run(t, "nobody sleeps any more", 1)
	if took := wait(20 * time.Millisecond); took < 20*time.Millisecond || l.Rung() != 3 {
		t.Errorf("the bell has rung for a reader that is awake again, after %v", took)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Wake(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wake after Close: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("Close after Close: %v", err)
	}
}

// TestLiveAllocations: a turn allocates nothing.
func TestLiveAllocations(t *testing.T) {
	if race.Enabled {
		t.Skip("the race detector allocates")
	}
	l := openLive(t, 1<<16, 1<<15)
	dst := make([]byte, 1<<10)
	l.run(t, "something", 200)
	if err := l.Look(monotonic()); err != nil {
		t.Fatal(err)
	}
	n := testing.AllocsPerRun(100, func() {
		if _, ok := l.Next(); !ok {
			t.Fatal("nothing there")
		}
		l.Take(dst[:l.Size()])
		l.Release()
		_ = l.Look(monotonic())
		l.Count()
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkTake takes copies of packets out of the buffers, or looks at them there.
func BenchmarkTake(b *testing.B) {
	for _, row := range []struct {
		name    string
		payload int // bytes
		inPlace bool
	}{{"64 bytes", 36, false}, {"64 bytes, in place", 36, true}, {"1400 bytes", 1372, false}, {"1400 bytes, in place", 1372, true}} {
		b.Run(row.name, func(b *testing.B) { take(b, string(make([]byte, row.payload)), row.inPlace) })
	}
}

func take(b *testing.B, payload string, inPlace bool) {
	l := openLive(b, 1<<23, 1<<22)
	dst := make([]byte, 2<<10)
	b.ReportAllocs()
	for left := 0; b.Loop(); left-- {
		if left == 0 {
			b.StopTimer()
			left = 4096
			l.run(b, payload, left)
			b.StartTimer()
			_ = l.Look(monotonic())
		}
		if _, ok := l.Next(); !ok {
			b.Fatal("nothing there")
		}
		if where := l.Peek(); inPlace && where != nil {
			l.Skip()
		} else {
			l.Take(dst[:l.Size()])
		}
		l.Release()
	}
}
