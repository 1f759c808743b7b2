package windows

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	sys "golang.org/x/sys/windows"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// envStress is the running time of TestStress, as a duration.
const envStress = "DIVERT_STRESS"

// handleCount returns the number of this process's handles.
func handleCount(t testing.TB) int {
	t.Helper()
	var n uint32
	proc := kernel32.NewProc("GetProcessHandleCount")
	if ok, _, err := proc.Call(uintptr(sys.CurrentProcess()), uintptr(unsafe.Pointer(&n))); ok == 0 {
		t.Fatal(err)
	}
	if n == 0 { // Wine 8 always returns that
		return listedHandles(t)
	}
	return int(n)
}

// listedHandles counts this process's handles in the system's list of all.
func listedHandles(t testing.TB) int {
	t.Helper()
	const listEntry, entrySize, ownerOffset = 2 * 8, 40, 8 // of SYSTEM_HANDLE_INFORMATION_EX on 64 bits
	list := make([]byte, 1<<20)
	var size uint32
	if err := sys.NtQuerySystemInformation(sys.SystemExtendedHandleInformation, unsafe.Pointer(&list[0]), uint32(len(list)), &size); err != nil {
		t.Fatal(err)
	}
	n, mine := binary.LittleEndian.Uint64(list), 0
	for i := range n {
		owner := binary.LittleEndian.Uint64(list[listEntry+i*entrySize+ownerOffset:])
		if owner == uint64(os.Getpid()) {
			mine++
		}
	}
	return mine
}

// TestHandleCount checks that the count works: on a Wine without one, the tests of leaks would pass.
func TestHandleCount(t *testing.T) {
	testDriver(t)
	before := handleCount(t)
	var events []sys.Handle
	for range 10 {
		event, err := sys.CreateEvent(nil, 1, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, event)
	}
	during := handleCount(t)
	for _, event := range events {
		sys.CloseHandle(event)
	}
	if during < before+10 {
		t.Errorf("%d handles, %d after 10 more", before, during)
	}
}

// TestNoLeak opens and closes handles in every way that could leave something behind.
func TestNoLeak(t *testing.T) {
	f := load(t)
	round := func() {
		h := network(t, "ipv6")
		done := make(chan struct{})
		for range 4 {
			go func() {
				h.Recv(make([]packet.Packet, 4))
				done <- struct{}{}
			}()
		}
		f.eventually("four receives wait", func(c census) bool { return c.pending == 4 })
		h.Send([]packet.Packet{numbered(1, 1)})
		h.Close()
		for range 4 {
			<-done
		}
		judged := network(t, "ipv6.FlowLabel == 5")
		judged.SetFilter(config(t, "ipv6.FlowLabel == 6 and udp", packet.LayerNetwork, 0).Program)
		judged.Close()
		f.fail(codeStartup, statusInvalidParameter, 0, 1)
		if _, err := Open(config(t, "true", packet.LayerNetwork, 0)); err == nil {
			t.Error("it opened")
		}
		f.mode(0)
	}
	for range 3 { // lets the runtime make its lasting objects first
		round()
	}
	before := handleCount(t)
	for range 20 {
		round()
	}
	if after := handleCount(t); after > before+10 { // threads of the runtime come and go
		t.Errorf("%d handles at first, %d in the end", before, after)
	}
}

// TestStress has 16 goroutines read and write one handle at once, while deadlines cut in: every packet sent
// comes back once, intact.
func TestStress(t *testing.T) {
	f := load(t)
	f.mode(modeLoop)
	h := network(t, "true")
	length := 2 * time.Second
	if text := os.Getenv(envStress); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	const writers, readers, window = 8, 8, 2048
	var (
		sent, got, next   atomic.Int64
		writing, reading  sync.WaitGroup
		mu                sync.Mutex
		seen              = make(map[int]int)
		before            int
		deadlines, ending atomic.Bool
		quiet             sync.RWMutex
		ended             = make(chan struct{})
	)
	write := func() {
		r := rand.New(rand.NewPCG(rand.Uint64(), 1))
		for end := time.Now().Add(length); time.Now().Before(end); {
			if sent.Load()-got.Load() > window {
				time.Sleep(time.Millisecond)
				continue
			}
			ps := make([]packet.Packet, 1+r.IntN(20))
			for i := range ps {
				ps[i] = numbered(int(next.Add(1)), r.IntN(1400))
			}
			quiet.RLock()
			sent.Add(int64(len(ps)))
			n, err := h.Send(ps)
			quiet.RUnlock()
			if n != len(ps) || err != nil {
				t.Errorf("sent %d of %d: %v", n, len(ps), err)
				return
			}
		}
	}
	read := func(batch int) {
		ps := make([]packet.Packet, batch)
		for {
			n, err := h.Recv(ps)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				deadlines.Store(true)
				time.Sleep(100 * time.Microsecond)
				continue
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			for i := range ps[:n] {
				number, err := numberIn(&ps[i])
				if err != nil {
					t.Error(err)
				}
				seen[number]++
			}
			mu.Unlock()
			got.Add(int64(n))
		}
	}
	for i := range readers {
		reading.Go(func() { read([]int{1, 3, 64, 255}[i%4]) })
	}
	for range writers {
		writing.Go(write)
	}
	go func() {
		defer close(ended)
		for !ending.Load() {
			time.Sleep(20 * time.Millisecond)
			// Wine 8 crashes if a driver completes a request that is being cancelled, so nothing is sent until the
			// receives have ended.
			quiet.Lock()
			for got.Load() < sent.Load() && !t.Failed() {
				time.Sleep(time.Millisecond)
			}
			h.SetReadDeadline(time.Now().Add(-time.Second))
			for f.census().pending > 0 {
				time.Sleep(time.Millisecond)
			}
			h.SetReadDeadline(time.Time{})
			quiet.Unlock()
		}
	}()
	time.Sleep(length / 2)
	before = handleCount(t)
	writing.Wait()
	after := handleCount(t)
	ending.Store(true)
	<-ended
	if err := h.Shutdown(engine.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	reading.Wait()
	for n := 1; n <= int(next.Load()); n++ {
		if seen[n] != 1 {
			t.Errorf("packet %d came %d times", n, seen[n])
		}
	}
	if len(seen) != int(sent.Load()) || !deadlines.Load() {
		t.Errorf("sent %d, got %d; deadlines passed: %v", sent.Load(), len(seen), deadlines.Load())
	}
	if after > before+20 {
		t.Errorf("%d handles in the middle, %d in the end", before, after)
	}
	t.Logf("%d packets in %v; handles %d, %d", len(seen), length, before, after)
}

// TestAllocations checks that receiving and sending allocate nothing per packet.
func TestAllocations(t *testing.T) {
	race.CannotCount(t)
	f := load(t)
	f.mode(modeLoop)
	h := network(t, "true")
	out := make([]packet.Packet, 8)
	for i := range out {
		out[i] = numbered(i, 500)
	}
	in := make([]packet.Packet, 8)
	if per := testing.AllocsPerRun(50, func() {
		if _, err := h.Send(out); err != nil {
			t.Error(err)
		}
		for left := len(out); left > 0; {
			n, err := h.Recv(in)
			if err != nil {
				t.Error(err)
				return
			}
			left -= n
		}
	}); per > 0 {
		t.Errorf("%v allocations for %d packets sent and received", per, len(out))
	}
}

// BenchmarkLoop sends and receives packets in batches.
func BenchmarkLoop(b *testing.B) {
	f := load(b)
	f.mode(modeLoop)
	h := network(b, "true")
	out, in := make([]packet.Packet, 64), make([]packet.Packet, 64)
	for i := range out {
		out[i] = numbered(i, 1000)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Send(out); err != nil {
			b.Fatal(err)
		}
		for left := len(out); left > 0; {
			n, err := h.Recv(in)
			if err != nil {
				b.Fatal(err)
			}
			left -= n
		}
	}
}
