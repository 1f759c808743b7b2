//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
)

// alternating returns a filter of n tests that no set can replace.
func alternating(n int, even, odd string) string {
	parts := make([]string, n)
	for i := range parts {
		field := even
		if i%2 == 1 {
			field = odd
		}
		parts[i] = fmt.Sprintf("%s == %d", field, 1+i)
	}
	return strings.Join(parts, " or ")
}

// receiveOne receives a packet and accepts it.
func receiveOne(t *testing.T, d *divert.Handle) {
	t.Helper()
	if err := d.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	ps := make([]divert.Packet, 1)
	if _, err := d.RecvBatch(ps); err != nil {
		t.Fatal(err)
	}
	if err := d.Accept(&ps[0]); err != nil {
		t.Fatal(err)
	}
}

// TestFilterThatIsTooLargeForTheKernel opens handles with 20,001 tests, and sets such a filter on an open handle.
func TestFilterThatIsTooLargeForTheKernel(t *testing.T) {
	large := alternating(20_001, "udp.SrcPort", "udp.DstPort")
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	in, err := pair.B.ListenPacket("udp4", "10.77.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	port := addrPort(in).Port()
	out := dialUDP(t, pair.A, in.LocalAddr())
	says := func(err error) {
		t.Helper()
		if !errors.Is(err, divert.ErrNotSupported) || !strings.Contains(err.Error(), "7000 tests") || !strings.Contains(err.Error(), "20001") {
			t.Errorf("got %v", err)
		}
	}

	d := openAt(t, pair.A, large+fmt.Sprintf(" or udp.DstPort == %d", port))
	if e := d.Description(); !strings.HasPrefix(e, "interpreter, because ") || !strings.Contains(e, "7000 tests") {
		t.Errorf("engine: %s", e)
	}
	send(t, out, 1, 10)
	receiveOne(t, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	says(pair.A.Do(func() error {
		d, err := divert.Open(large, divert.WithEngine(divert.EngineKernel))
		if err == nil {
			d.Close()
		}
		return err
	}))

	d = openAt(t, pair.A, fmt.Sprintf("udp.DstPort == %d", port))
	says(d.SetFilter(large))
	send(t, out, 1, 10)
	receiveOne(t, d) // the old filter is in force

	// A list of values of one field is a set, of any length.
	if err := d.SetFilter(alternating(20_001, "udp.DstPort", "udp.DstPort") + fmt.Sprintf(" or udp.DstPort == %d", port)); err != nil {
		t.Fatal(err)
	}
	send(t, out, 1, 10)
	receiveOne(t, d)
}

// TestEventFilterThatIsTooLargeForTheKernel does the same at the layers with events: a handle that only listens gets
// the interpreter, a handle that refuses gets an error.
func TestEventFilterThatIsTooLargeForTheKernel(t *testing.T) {
	large := alternating(9_001, "localPort", "remotePort")
	h := lab.NewT(t)
	host, err := h.AddHost("A")
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name  string
		layer divert.Layer
		flags divert.Flag
		opens bool
	}{
		{"FLOW", divert.LayerFlow, divert.Sniff | divert.RecvOnly, true},
		{"SOCKET, sniffing", divert.LayerSocket, divert.Sniff | divert.RecvOnly, true},
		{"SOCKET, refusing", divert.LayerSocket, divert.RecvOnly, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			open := func(text string) (d *divert.Handle, err error) {
				err = host.Do(func() (err error) {
					d, err = divert.Open(text, divert.WithLayer(row.layer), divert.WithFlags(row.flags))
					return err
				})
				return d, err
			}
			d, err := open("false")
			if errors.Is(err, divert.ErrNotSupported) {
				t.Skip(err)
			} else if err != nil {
				t.Fatal(err)
			}
			if err := d.SetFilter(large); !errors.Is(err, divert.ErrNotSupported) || !strings.Contains(err.Error(), "the filter before stays in force") {
				t.Errorf("SetFilter: %v", err)
			}
			d.Close()
			d, err = open(large)
			if err == nil {
				defer d.Close()
			}
			if !row.opens {
				if !errors.Is(err, divert.ErrNotSupported) || !strings.Contains(err.Error(), "7000 tests") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if e := d.Description(); !strings.HasPrefix(e, "interpreter, because ") {
				t.Errorf("engine: %s", e)
			}
		})
	}
}

// TestSetOf500000Prefixes opens handles with a set too large for any filter text, and sets it on an open handle.
func TestSetOf500000Prefixes(t *testing.T) {
	prefixes := make([]netip.Prefix, 500_000)
	for i := range prefixes {
		v := i << 5
		prefixes[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{16 + byte(v>>24), byte(v >> 16), byte(v >> 8), byte(v)}), 28)
	}
	with := filter.UDP.And(filter.IPDstAddr.In(append(prefixes, netip.MustParsePrefix("10.77.0.0/24"))...))
	without, err := filter.UDP.And(filter.IPDstAddr.In(prefixes...)).Compile(divert.LayerNetwork)
	if err != nil {
		t.Fatal(err)
	}
	p, err := with.Compile(divert.LayerNetwork)
	if err != nil {
		t.Fatal(err)
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		in, err := pair.B.ListenPacket("udp4", "10.77.0.2:0")
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out := dialUDP(t, pair.A, in.LocalAddr())
		var d *divert.Handle
		start := time.Now()
		if err := pair.A.Do(func() (err error) { d, err = divert.OpenProgram(p, e); return err }); err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		t.Logf("opened in %v", time.Since(start))
		send(t, out, 1, 10)
		receiveOne(t, d)
		if err := d.SetProgram(without); err != nil {
			t.Fatal(err)
		}
		send(t, out, 1, 10)
		for i := range 2 {
			in.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, _, err := in.ReadFrom(make([]byte, 100)); err != nil {
				t.Fatalf("datagram %d: %v", i, err)
			}
		}
		if s := stats(t, d); s.Matched != 1 {
			t.Errorf("%+v", s)
		}
		other, err := filter.Compile("true", divert.LayerForward, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		for _, wrong := range []*filter.Program{nil, other} {
			if err := d.SetProgram(wrong); !errors.Is(err, divert.ErrInvalid) {
				t.Errorf("SetProgram(%v): %v", wrong, err)
			}
		}
	})
}
