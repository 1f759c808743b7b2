//go:build linux

package socketfeed

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/events"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// TestFlowEndsThoughItsRecordIsLost closes a connection while there is no room to tell of it.
func TestFlowEndsThoughItsRecordIsLost(t *testing.T) {
	host, err := lab.NewT(t).AddHost("A")
	if err != nil {
		t.Fatal(err)
	}
	p, err := progtest.Compile("true", packet.LayerFlow, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	var opened engine.Handle
	var raising *feed
	err = host.Do(func() (err error) {
		opened, err = events.Open(engine.Config{
			Program: p, Flags: engine.FlagSniff | engine.FlagRecvOnly, Queues: 1,
			Limits: engine.Limits{Length: 16384, Time: 16 * time.Second, Size: 32 << 20},
		}, func(env events.Env) (events.Feed, error) {
			f, err := Open(env)
			if err == nil {
				raising = f.(*feed)
			}
			return f, err
		})
		return err
	})
	if errors.Is(err, engine.ErrNotSupported) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()

	listener, err := host.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c, err := host.Dial(t.Context(), "tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	awaitFlow(t, opened, packet.EventFlowEstablished, port)

	// While its records are not read, flows of a socket fill the ring, until one is lost.
	raising.mu.Lock()
	socket, err := host.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for i := 0; ; i++ {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 14), 1}), uint16(1+i&0x3fff))
		_, _ = socket.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(to)) // nobody listens there: a later send gets that error
		if counts, err := raising.source.Counts(); err != nil {
			t.Fatal(err)
		} else if counts.Lost > 0 {
			break
		}
	}
	if err := errors.Join(c.Close(), accepted.Close()); err != nil {
		t.Fatal(err)
	}
	raising.mu.Unlock()
	awaitFlow(t, opened, packet.EventFlowDeleted, port)
}

// awaitFlow receives until an event of a connection to a port has come.
func awaitFlow(t *testing.T, h engine.Handle, event packet.Event, port int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	defer context.AfterFunc(ctx, h.Wake)()
	ps := make([]packet.Packet, 256)
	for {
		n, err := h.Recv(engine.Wait{Context: ctx.Done()}, ps)
		if err != nil {
			t.Fatalf("no %v: %v", event, err)
		}
		for i := range ps[:n] {
			a := &ps[i].Addr
			if f := a.Flow(); a.Event == event && f.Protocol == unix.IPPROTO_TCP && int(f.RemotePort) == port {
				return
			}
		}
	}
}
