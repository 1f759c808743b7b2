//go:build linux

package e2e_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) {
	runChild()
	lab.Main(m)
}

// amount returns the size of a transfer of n bytes, reduced with -short. DIVERT_TEST_SCALE divides it, for machines as
// slow as emulators.
func amount(n int64) int64 {
	if testing.Short() {
		n /= 4
	}
	if scale, err := strconv.ParseInt(os.Getenv("DIVERT_TEST_SCALE"), 10, 64); err == nil && scale > 0 {
		return n / scale
	}
	return n
}

// engines are the engines that decide which packets match. Every live test runs with each of them, and skips with the
// reason where eBPF is unavailable.
var engines = []struct {
	name   string
	engine divert.Engine
}{
	{"kernel", divert.EngineKernel},
	{"interpreter", divert.EngineInterpreter},
}

// eachEngine runs a test with each engine on two new hosts.
func eachEngine(t *testing.T, o lab.LinkOptions, f func(t *testing.T, pair *lab.Pair, e divert.Option)) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, o)
			needEngine(t, pair.A, e.engine)
			f(t, pair, divert.WithEngine(e.engine))
		})
	}
}

// needEngine skips where an engine is unavailable.
func needEngine(t testing.TB, h *lab.Host, e divert.Engine) {
	t.Helper()
	err := h.Do(func() error {
		d, err := divert.Open("false", divert.WithEngine(e))
		if err == nil {
			err = d.Close()
		}
		return err
	})
	if errors.Is(err, os.ErrPermission) && e == divert.EngineKernel && os.Getenv("DIVERT_NEED_KERNEL") == "" {
		t.Skipf("no eBPF here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// notInShort skips tests that take long, and much longer with the race detector.
func notInShort(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long, and -short was given")
	}
}

// openAt opens a handle in a host's namespace and closes it when the test ends.
func openAt(t testing.TB, h *lab.Host, text string, opts ...divert.Option) *divert.Handle {
	t.Helper()
	var d *divert.Handle
	if err := h.Do(func() (err error) {
		d, err = divert.Open(text, opts...)
		return err
	}); err != nil {
		t.Fatalf("open %q on %v: %v", text, h, err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("close %q: %v", text, err)
		}
	})
	return d
}

// worker is a goroutine that receives from a handle until it is closed or shut down.
type worker struct {
	done  chan struct{}
	count int // number of packets, when done
}

// wait waits for the worker's end and returns the number of packets.
func (w *worker) wait() int {
	<-w.done
	return w.count
}

// each passes every packet of a handle to f, one after the other.
func each(t testing.TB, d *divert.Handle, f func(*divert.Packet)) *worker {
	t.Helper()
	w := &worker{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		for p, err := range d.Packets(context.Background()) {
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("receive: %v", err)
				}
				return
			}
			w.count++
			f(p)
		}
	}()
	return w
}

// passthru accepts every packet of a handle, in batches.
func passthru(t testing.TB, d *divert.Handle) *worker {
	t.Helper()
	return batches(t, d, d.AcceptBatch)
}

// resend sends on every packet of a handle with its bytes, in batches.
func resend(t testing.TB, d *divert.Handle) *worker {
	t.Helper()
	return batches(t, d, d.SendBatch)
}

func batches(t testing.TB, d *divert.Handle, send func([]divert.Packet) (int, error)) *worker {
	w := &worker{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		ps := make([]divert.Packet, 64)
		for {
			n, err := d.RecvBatch(ps)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) && err != io.EOF {
					t.Errorf("receive: %v", err)
				}
				return
			}
			w.count += n
			if sent, err := send(ps[:n]); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Errorf("sent %d of %d: %v", sent, n, err)
			}
		}
	}()
	return w
}

// families are the address families with the addresses that a host has in each.
var families = []struct {
	name string
	addr func(*lab.Host) netip.Addr
}{
	{"IPv4", (*lab.Host).Addr4},
	{"IPv6", (*lab.Host).Addr6},
}

// echoAt starts an echo server on an address of a host.
func echoAt(t testing.TB, h *lab.Host, network string, addr netip.Addr) *lab.Echo {
	t.Helper()
	e, err := h.Echo(network, netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// exchange sends datagrams to an echo server.
func exchange(t testing.TB, from *lab.Host, to netip.AddrPort, x lab.Exchange) lab.Exchanged {
	t.Helper()
	// A round trip beside other tests and the race detector has taken 70 ms.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second+time.Duration(x.Count)*200*time.Millisecond)
	defer cancel()
	r, err := lab.ExchangeUDP(ctx, from, to, x)
	if err != nil {
		t.Fatalf("%v, after %+v", err, r)
	}
	return r
}

// transfer sends n bytes over TCP and checks that they arrive unchanged.
func transfer(t testing.TB, from, to *lab.Host, addr netip.Addr, n int64) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	took, err := lab.TransferTCP(ctx, from, to, netip.AddrPortFrom(addr, 0), n, 7)
	if err != nil {
		t.Fatal(err)
	}
	return took
}

// finish ends capturing and waits until the worker has handled the captured packets.
func finish(t testing.TB, d *divert.Handle, w *worker) int {
	t.Helper()
	if err := d.Shutdown(divert.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	return w.wait()
}

// stats returns the counters of a handle.
func stats(t testing.TB, d *divert.Handle) divert.Stats {
	t.Helper()
	s, err := d.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return s
}
