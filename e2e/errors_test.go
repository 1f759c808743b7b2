//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/wincode"
)

// refusal is the expected error of a failing call.
type refusal struct {
	is   error  // for errors.Is; nil: a *filter.Error
	code uint32 // for the C interface
}

var (
	invalid   = refusal{divert.ErrInvalid, 87}
	badFilter = refusal{nil, 87}
)

// check compares an error with the expected one.
func (r refusal) check(t *testing.T, op string, err error) {
	t.Helper()
	var o *divert.OpError
	if !errors.As(err, &o) || o.Op != op {
		t.Errorf("the error is %#v, want an OpError of %q", err, op)
	}
	var f *filter.Error
	if r.is == nil && !errors.As(err, &f) || r.is != nil && !errors.Is(err, r.is) {
		t.Errorf("the error is %v, want %v", err, r.is)
	}
	if c := wincode.Of(err); c != r.code {
		t.Errorf("the code of %v is %d, want %d", err, c, r.code)
	}
}

// TestOpenRefuses: an Open that fails gives the reason, and leaves nothing behind.
func TestOpenRefuses(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, row := range []struct {
		name   string
		filter string
		opts   []divert.Option
		want   refusal
	}{
		{"no filter at all", "", nil, badFilter},
		{"unknown field", "foo", nil, badFilter},
		{"half a filter", "tcp and", nil, badFilter},
		{"field of another layer", "localPort == 1", []divert.Option{divert.WithLayer(divert.LayerForward)}, badFilter},
		{"value out of range", "tcp.DstPort == 65536", nil, badFilter},
		{"no object", "@WinDiv_x", nil, badFilter},
		{"strict dialect", "ip.SrcAddr == 10.0.0.0/8", []divert.Option{divert.WithStrict()}, badFilter},
		{"no such layer", "true", []divert.Option{divert.WithLayer(5)}, invalid},
		{"no such layer, far", "true", []divert.Option{divert.WithLayer(255)}, invalid},
		{"unknown flag", "true", []divert.Option{divert.WithFlags(0x40)}, invalid},
		{"unknown high flag", "true", []divert.Option{divert.WithFlags(1 << 63)}, invalid},
		{"priority too high", "true", []divert.Option{divert.WithPriority(30001)}, invalid},
		{"priority too low", "true", []divert.Option{divert.WithPriority(-30001)}, invalid},
		{"queue too short", "true", []divert.Option{divert.WithQueueLength(31)}, invalid},
		{"queue too long", "true", []divert.Option{divert.WithQueueLength(16385)}, invalid},
		{"queue time too short", "true", []divert.Option{divert.WithQueueTime(99 * time.Millisecond)}, invalid},
		{"queue time too long", "true", []divert.Option{divert.WithQueueTime(16001 * time.Millisecond)}, invalid},
		{"queue too small", "true", []divert.Option{divert.WithQueueSize(65534)}, invalid},
		{"queue too large", "true", []divert.Option{divert.WithQueueSize(33554433)}, invalid},
		{"negative queue", "true", []divert.Option{divert.WithQueueLength(-1)}, invalid},
		{"negative queue time", "true", []divert.Option{divert.WithQueueTime(-time.Second)}, invalid},
		{"negative queue size", "true", []divert.Option{divert.WithQueueSize(-1)}, invalid},
		{"no such engine", "true", []divert.Option{divert.WithEngine(divert.EngineInterpreter + 1)}, invalid},
		{"bad flags before a bad filter", "foo", []divert.Option{divert.WithFlags(0x40)}, invalid},
	} {
		t.Run(row.name, func(t *testing.T) {
			d, err := openHere(pair.A, row.filter, row.opts...)
			if err == nil {
				d.Close()
				t.Fatal("opened")
			}
			row.want.check(t, "open", err)
		})
	}
	if tables, err := pair.A.NFTables(); err != nil || len(tables) != 0 {
		t.Errorf("left behind: tables %v (%v)", tables, err)
	}
}

// TestNil: nil arguments are refused, except options.
func TestNil(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openAt(t, pair.A, "false", nil)
	invalid.check(t, "send", d.Send(nil))
	invalid.check(t, "accept", d.Accept(nil))
	_, err := divert.OpenProgram(nil)
	invalid.check(t, "open", err)
	for name, batch := range map[string]func([]divert.Packet) (int, error){
		"RecvBatch": d.RecvBatch, "SendBatch": d.SendBatch, "AcceptBatch": d.AcceptBatch,
	} {
		if n, err := batch(nil); n != 0 || err != nil {
			t.Errorf("%s of nothing: %d, %v", name, n, err)
		}
	}
}

// TestMessages: an error names its subject in the caller's words, and the remedy.
func TestMessages(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	open := func(opts ...divert.Option) error {
		d, err := openHere(pair.A, "false", opts...)
		if err == nil {
			d.Close()
		}
		return err
	}
	d := openAt(t, pair.A, "false")
	for _, row := range []struct {
		err  error
		want string
	}{
		{open(divert.WithQueueLength(-1)), "queue length -1 is out of range (32 to 16384 packets)"},
		{open(divert.WithQueueTime(-time.Second)), "queue time -1s is out of range (100ms to 16s)"},
		{open(divert.WithQueueSize(7)), "queue size 7 is out of range (65535 to 33554432 bytes)"},
		{d.SetQueueTime(1500500 * time.Microsecond), "set queue time: invalid argument: queue time 1.5005s is not a whole number of milliseconds; round it"},
	} {
		if row.err == nil || !strings.HasSuffix(row.err.Error(), row.want) {
			t.Errorf("the error is %v, want %s", row.err, row.want)
		}
	}
}

// TestFlagsOfLayers is the table of legal flags (specification: api.md 4).
func TestFlagsOfLayers(t *testing.T) {
	t.Parallel()
	const (
		network = iota // and forward
		flow
		socket
		reflect
	)
	layers := [][]divert.Layer{
		network: {divert.LayerNetwork, divert.LayerForward}, flow: {divert.LayerFlow},
		socket: {divert.LayerSocket}, reflect: {divert.LayerReflect},
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, row := range []struct {
		flags divert.Flag
		legal [4]bool
	}{
		{0, [4]bool{true, false, false, false}},
		{divert.Sniff, [4]bool{true, false, false, false}},
		{divert.Drop, [4]bool{true, false, false, false}},
		{divert.RecvOnly, [4]bool{true, false, true, false}},
		{divert.SendOnly, [4]bool{true, false, false, false}},
		{divert.Sniff | divert.RecvOnly, [4]bool{true, true, true, true}},
		{divert.Drop | divert.RecvOnly, [4]bool{true, false, true, false}},
		{divert.Sniff | divert.SendOnly, [4]bool{true, false, false, false}},
		{divert.Drop | divert.SendOnly, [4]bool{true, false, false, false}},
		{divert.Sniff | divert.Drop, [4]bool{}},
		{divert.RecvOnly | divert.SendOnly, [4]bool{}},
		{divert.Sniff | divert.Drop | divert.RecvOnly, [4]bool{}},
	} {
		for kind, legal := range row.legal {
			for _, layer := range layers[kind] {
				for _, more := range []divert.Flag{0, divert.NoInstall, divert.Fragments} {
					t.Run(fmt.Sprintf("%v/%v", layer, row.flags|more), func(t *testing.T) {
						d, err := openHere(pair.A, "false", divert.WithLayer(layer), divert.WithFlags(row.flags|more))
						if err == nil {
							defer d.Close()
						}
						switch {
						case !legal && err == nil:
							t.Error("opened")
						case !legal:
							invalid.check(t, "open", err)
						case err == nil && d.Flags() != row.flags|more:
							t.Errorf("the handle's flags are %v", d.Flags())
						case errors.Is(err, divert.ErrInvalid):
							t.Error(err)
						case err != nil && (kind == network || !errors.Is(err, divert.ErrNotSupported)):
							t.Error(err)
						}
					})
				}
			}
		}
	}
}

// TestWithoutRights: a process without capabilities gets an error that names the missing ones; a bad filter is reported
// first.
func TestWithoutRights(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, e := range append(engines, struct {
		name   string
		engine divert.Engine
	}{"auto", divert.EngineAuto}) {
		t.Run(e.name, func(t *testing.T) {
			for filter, want := range map[string]refusal{"udp": {os.ErrPermission, 5}, "foo": badFilter} {
				err := pair.A.Do(func() error {
					return lab.WithoutRights(func() error {
						d, err := divert.Open(filter, divert.WithEngine(e.engine))
						if err == nil {
							d.Close()
						}
						return err
					})
				})
				if err == nil {
					t.Fatal("opened without rights")
				}
				want.check(t, "open", err)
				t.Log(err)
			}
		})
	}
	if tables, err := pair.A.NFTables(); err != nil || len(tables) != 0 {
		t.Errorf("left behind: tables %v (%v)", tables, err)
	}
}

// TestSendRefuses: bytes that are not a packet are refused, one by one (specification: api.md 8).
func TestSendRefuses(t *testing.T) {
	v4 := datagram(t, "10.77.0.1", "10.77.0.2", "hello")
	v6 := datagram(t, "fd77::1", "fd77::2", "hello")
	changed := func(b []byte, at int, v ...byte) []byte {
		c := append([]byte(nil), b...)
		copy(c[at:], v)
		return c
	}
	short := refusal{divert.ErrShortBuffer, 122}
	rows := []struct {
		name  string
		data  []byte
		addr  func(*divert.Address)
		want  refusal
		fresh bool // refused by the stack, so only as a fresh injection
	}{
		{"nothing", nil, nil, short, false},
		{"19 bytes", v4[:19], nil, short, false},
		{"IPv4, one byte missing", v4[:len(v4)-1], nil, short, false},
		{"IPv6, 39 bytes", v6[:39], nil, short, false},
		{"IPv6, one byte missing", v6[:len(v6)-1], nil, short, false},
		{"version 0", changed(v4, 0, 0x05), nil, invalid, false},
		{"version 5", changed(v4, 0, 0x55), nil, invalid, false},
		{"version 15", changed(v4, 0, 0xf5), nil, invalid, false},
		{"IPv4 total length 19", changed(v4, 2, 0, 19), nil, invalid, false},
		{"IPv4 total length 0", changed(v4, 2, 0, 0), nil, invalid, false},
		{"impostor with TTL 1", changed(v4, 8, 1), func(a *divert.Address) { a.Impostor = true }, refusal{divert.ErrHopLimit, 1232}, false},
		{"impostor with TTL 0", changed(v4, 8, 0), func(a *divert.Address) { a.Impostor = true }, refusal{divert.ErrHopLimit, 1232}, false},
		{"impostor with hop limit 1", changed(v6, 7, 1), func(a *divert.Address) { a.Impostor = true }, refusal{divert.ErrHopLimit, 1232}, false},
		{"inbound on no interface", v4, func(a *divert.Address) { a.Outbound = false }, refusal{divert.ErrNoSuchDevice, 87}, true},
		{"inbound on an interface that is not there", v4, func(a *divert.Address) {
			a.Outbound = false
			n := a.Network()
			n.IfIdx = 4242
			a.SetNetwork(n)
		}, refusal{divert.ErrNoSuchDevice, 87}, true},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		d := openAt(t, pair.A, "false", e)
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				a := divert.Address{Outbound: true}
				if row.addr != nil {
					row.addr(&a)
				}
				err := d.Send(&divert.Packet{Data: append([]byte(nil), row.data...), Addr: a})
				skipWithoutDevice(t, err)
				row.want.check(t, "send", err)
			})
		}
		t.Run("the good ones of a batch go", func(t *testing.T) {
			conn, _ := receiver(t, pair.B, pair.B.Addr4())
			port := addrPort(conn).Port()
			good := craft(t, "10.77.0.1", "10.77.0.2", port, []byte("good"))
			ps := []divert.Packet{{Data: good}, {Data: v4[:19]}, {Data: good}, {Data: changed(v4, 0, 0x55)}}
			for i := range ps {
				ps[i].Addr.Outbound = true
			}
			before := stats(t, d)
			n, err := d.SendBatch(ps)
			if n != 2 {
				t.Errorf("%d were sent, want 2", n)
			}
			invalid.check(t, "send", err) // that of the last packet
			if s := stats(t, d); s.Injected-before.Injected != 2 || s.Failed-before.Failed != 2 {
				t.Errorf("counters %+v", s)
			}
		})
		t.Run("batches that are too long", func(t *testing.T) {
			_, err := d.SendBatch(make([]divert.Packet, divert.MaxBatch+1))
			invalid.check(t, "send", err)
			_, err = d.AcceptBatch(make([]divert.Packet, divert.MaxBatch+1))
			invalid.check(t, "accept", err)
		})
	})
}

// TestLimitsRefuse: limits out of range change nothing.
func TestLimitsRefuse(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openAt(t, pair.A, "false")
	for _, n := range []int{-1, 0, 31, 16385, math.MaxInt} {
		invalid.check(t, "set queue length", d.SetQueueLength(n))
	}
	for _, age := range []time.Duration{-time.Second, 0, 100*time.Millisecond - 1, 16*time.Second + 1, 100500 * time.Microsecond, math.MaxInt64} {
		invalid.check(t, "set queue time", d.SetQueueTime(age))
	}
	for _, n := range []int{-1, 65534, 33554433, math.MinInt} {
		invalid.check(t, "set queue size", d.SetQueueSize(n))
	}
	if l, age, n := d.QueueLength(), d.QueueTime(), d.QueueSize(); l != 4096 || age != 2*time.Second || n != 4194304 {
		t.Errorf("the limits are %d, %v, %d", l, age, n)
	}
	if major, minor := divert.Version(); major != 2 || minor != 2 {
		t.Errorf("version %d.%d", major, minor)
	}
}

// TestHalvesThatAreNotThere: flags that remove one half of the handle.
func TestHalvesThatAreNotThere(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		a := divert.Address{Outbound: true}
		b := datagram(t, "10.77.0.1", "10.77.0.2", "x")
		for _, base := range []divert.Flag{0, divert.Sniff, divert.Drop} {
			recvOnly := openAt(t, pair.A, "false", e, divert.WithFlags(base|divert.RecvOnly))
			refusal{divert.ErrRecvOnly, 87}.check(t, "send", recvOnly.Send(&divert.Packet{Data: b, Addr: a}))
			refusal{divert.ErrRecvOnly, 87}.check(t, "accept", recvOnly.Accept(&divert.Packet{Data: b, Addr: a}))
			sendOnly := openAt(t, pair.A, "false", e, divert.WithFlags(base|divert.SendOnly))
			_, _, err := sendOnly.Recv(make([]byte, 100))
			refusal{divert.ErrSendOnly, 87}.check(t, "recv", err)
			for _, d := range []*divert.Handle{sendOnly, openAt(t, pair.A, "false", e, divert.WithFlags(base))} {
				if err := d.Send(&divert.Packet{Data: b, Addr: a}); err != nil {
					t.Errorf("sending with %v: %v", d.Flags(), err)
				}
			}
		}
	})
}

// TestReceiveBuffers: a buffer that is too small gets the beginning; the packet can still go on whole.
func TestReceiveBuffers(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, expect := receiver(t, pair.B, pair.B.Addr4())
		c := dialUDP(t, pair.A, conn.LocalAddr())
		d := openAt(t, pair.A, "outbound and udp", e)
		short := refusal{divert.ErrShortBuffer, 122}
		_, _, err := d.Recv(nil)
		short.check(t, "recv", err)
		fmt.Fprint(c, "longer than the buffer")
		b := make([]byte, 30)
		n, a, err := d.Recv(b)
		short.check(t, "recv", err)
		if n != len(b) || !a.Outbound {
			t.Errorf("%d bytes, address %+v", n, a)
		}
		short.check(t, "send", d.Send(&divert.Packet{Data: b, Addr: a})) // the packet is not whole
		if err := d.Accept(&divert.Packet{Data: b, Addr: a}); err != nil {
			t.Error(err)
		}
		expect("longer than the buffer")
	})
}
