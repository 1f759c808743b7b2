//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/wincode"
)

// nft changes the nftables rules of a host as another program would.
func nft(t testing.TB, h *lab.Host, change func(*nftables.Conn)) {
	t.Helper()
	if err := h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		change(c)
		return c.Flush()
	}); err != nil {
		t.Fatal(err)
	}
}

// TestRulesRemovedByOthers: a handle whose rules another program removes reports that to waiting callers, and can be
// closed; the next handle works.
func TestRulesRemovedByOthers(t *testing.T) {
	t.Parallel()
	ours := &nftables.Table{Name: "divert", Family: nftables.TableFamilyINet}
	removals := []struct {
		name   string
		remove func(*nftables.Conn)
	}{
		{"flush ruleset", func(c *nftables.Conn) { c.FlushRuleset() }},
		{"delete table inet divert", func(c *nftables.Conn) { c.DelTable(ours) }},
		{"flush table inet divert", func(c *nftables.Conn) { c.FlushTable(ours) }},
		{"flush chain inet divert outbound", func(c *nftables.Conn) {
			c.FlushChain(&nftables.Chain{Name: "outbound", Table: ours})
		}},
	}
	kinds := []struct {
		name  string
		flags divert.Flag
	}{{"divert", 0}, {"sniff", divert.Sniff}, {"drop", divert.Drop}}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
		for _, r := range removals {
			for _, k := range kinds {
				t.Run(r.name+"/"+k.name, func(t *testing.T) {
					d := openAt(t, pair.A, fmt.Sprintf("udp.DstPort == %d", echo.Addr().Port()), divert.WithFlags(k.flags), e)
					told := make(chan error, 1)
					go func() {
						_, err := d.RecvBatch(make([]divert.Packet, 4))
						for errors.Is(err, divert.ErrDropOnly) { // it does not wait
							time.Sleep(time.Millisecond)
							_, err = d.RecvBatch(make([]divert.Packet, 4))
						}
						told <- err
					}()
					time.Sleep(10 * time.Millisecond)
					nft(t, pair.A, r.remove)
					select {
					case err := <-told:
						if !errors.Is(err, divert.ErrRulesGone) || wincode.Of(err) != 1167 {
							t.Errorf("the waiting receiver got %v (code %d)", err, wincode.Of(err))
						}
					case <-time.After(20 * time.Second):
						t.Fatal("the waiting receiver got no error")
					}
					if _, err := d.RecvBatch(make([]divert.Packet, 4)); !errors.Is(err, divert.ErrRulesGone) {
						t.Errorf("a later receiver got %v", err)
					}
					if err := d.SetFilter("true"); !errors.Is(err, divert.ErrRulesGone) {
						t.Errorf("SetFilter: %v", err)
					}
					if _, err := d.Stats(); err != nil {
						t.Errorf("Stats: %v", err)
					}
					if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 5}); r.Echoed != 5 {
						t.Errorf("traffic without rules: %+v", r)
					}
					next := openAt(t, pair.A, "udp", e)
					w := passthru(t, next)
					if err := d.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
					if err := d.Close(); !errors.Is(err, net.ErrClosed) {
						t.Errorf("the second Close: %v", err)
					}
					if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 5}); r.Echoed != 5 {
						t.Errorf("through the next handle: %+v", r)
					}
					next.Close()
					if n := w.wait(); n != 10 {
						t.Errorf("the next handle saw %d packets, want 10", n)
					}
					if tables, err := pair.A.NFTables(); err != nil || len(tables) != 0 {
						t.Errorf("left behind: tables %v (%v)", tables, err)
					}
				})
			}
		}
	})
}
