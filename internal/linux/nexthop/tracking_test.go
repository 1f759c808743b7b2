//go:build linux

package nexthop

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// TestTrackedConnectionsAreNotForwardedElsewhere: while a connection is tracked, a forwarded packet's new destination has no hop
// in common with the old one; that of a packet of this host may.
func TestTrackedConnectionsAreNotForwardedElsewhere(t *testing.T) {
	for i, name := range trackingFiles {
		t.Run(name, func(t *testing.T) {
			old := trackingFiles
			t.Cleanup(func() { trackingFiles = old })
			trackingFiles = append([]string{}, old...)
			trackingFiles[1-i] = "/nowhere"
			if _, err := os.Stat(name); err != nil {
				t.Skip(err)
			}
			p := newPlace(t)
			own := p.way("10.77.0.8", "10.77.0.9")
			forwarded := *own
			forwarded.Forwarded, forwarded.Source = true, netip.MustParseAddr("198.51.100.1")
			p.expect(t, own, Linked)
			p.expect(t, &forwarded, Linked)
			if err := p.A.Do(trackAndSend); err != nil {
				t.Fatal(err)
			}
			p.expect(t, own, Linked)
			p.expect(t, &forwarded, Apart)
		})
	}
}

// trackAndSend makes the kernel track connections and begins one.
func trackAndSend() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "tracking", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, &expr.Counter{}}})
	if err := c.Flush(); err != nil {
		return err
	}
	u, err := net.Dial("udp", "10.77.0.2:9")
	if err != nil {
		return err
	}
	defer u.Close()
	_, err = fmt.Fprint(u, "x")
	return err
}

func TestConnections(t *testing.T) {
	const table = "entries  clashres found new invalid ignore delete\n0000001f  00000000 00000000\n0000001f  00000000 00000000\n"
	for _, row := range []struct {
		text string
		stat bool
		want uint64
		ok   bool
	}{
		{"0\n", false, 0, true}, {"262144\n", false, 262144, true}, {"", false, 0, false}, {"many\n", false, 0, false},
		{table, true, 0x1f, true}, {"entries\n", true, 0, false}, {"entries", true, 0, false}, {"", true, 0, false}, {"entries\nxyz\n", true, 0, false},
	} {
		if n, ok := connections([]byte(row.text), row.stat); n != row.want || ok != row.ok {
			t.Errorf("%q: %d, %v; want %d, %v", row.text, n, ok, row.want, row.ok)
		}
	}
}

func FuzzConnections(f *testing.F) {
	f.Add([]byte("17\n"), false)
	f.Add([]byte("entries\n00000011 0\n"), true)
	f.Fuzz(func(t *testing.T, b []byte, stat bool) {
		if n, ok := connections(b, stat); !ok && n != 0 {
			t.Errorf("%q: %d, and not known", b, n)
		}
	})
}
