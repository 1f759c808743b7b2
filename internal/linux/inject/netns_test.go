//go:build linux

package inject

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

const testCursor = 0xDABCDEF0

// do runs f in a host's namespace and ends the test on an error.
func do(t testing.TB, h *lab.Host, f func() error) {
	t.Helper()
	if err := h.Do(f); err != nil {
		t.Fatal(err)
	}
}

// newOutbound opens an Outbound whose packets have the priority: without the rules of handles it stays.
func newOutbound(t testing.TB, h *lab.Host, priority uint32) *Outbound {
	t.Helper()
	return outboundWith(t, h, Password{Priority: priority, Mark: 0x5aa5})
}

func outboundWith(t testing.TB, h *lab.Host, p Password) *Outbound {
	t.Helper()
	var o *Outbound
	do(t, h, func() (err error) { o, err = NewOutbound(p); return err })
	t.Cleanup(func() { o.Close() })
	return o
}

var tables atomic.Uint32

// counter counts the packets that pass a hook of a host with a value in skb->priority.
type counter struct {
	conn  *nftables.Conn
	chain *nftables.Chain
}

// countPriority installs a counter behind the rules in first. The table is the test's own.
func countPriority(t testing.TB, h *lab.Host, hook *nftables.ChainHook, priority uint32, first ...[]expr.Any) *counter {
	t.Helper()
	return countAt(t, h, hook, -399, priority, first...)
}

// countAt is countPriority in a chain of another priority.
func countAt(t testing.TB, h *lab.Host, hook *nftables.ChainHook, place nftables.ChainPriority, priority uint32, first ...[]expr.Any) *counter {
	t.Helper()
	c := &counter{}
	do(t, h, func() (err error) {
		c.conn, err = nftables.New(nftables.AsLasting())
		return err
	})
	table := c.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet,
		Name: fmt.Sprintf("count%d", tables.Add(1))})
	t.Cleanup(func() {
		c.conn.DelTable(table)
		if err := c.conn.Flush(); err != nil {
			t.Error(err)
		}
		c.conn.CloseLasting()
	})
	c.chain = c.conn.AddChain(&nftables.Chain{Name: "c", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityRef(place)})
	for _, exprs := range first {
		c.conn.AddRule(&nftables.Rule{Table: table, Chain: c.chain, Exprs: exprs})
	}
	c.conn.AddRule(&nftables.Rule{Table: table, Chain: c.chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(priority)},
		&expr.Counter{},
	}})
	if err := c.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	return c
}

// packets returns how many packets were counted.
func (c *counter) packets(t testing.TB) uint64 {
	t.Helper()
	rules, err := c.conn.GetRules(c.chain.Table, c.chain)
	if err != nil || len(rules) == 0 {
		t.Fatalf("rules: %v %v", rules, err)
	}
	for _, e := range rules[len(rules)-1].Exprs {
		if n, ok := e.(*expr.Counter); ok {
			return n.Packets
		}
	}
	t.Fatal("no counter")
	return 0
}

// next returns the next IP packet of a capture that match accepts, nil if none comes within wait.
func next(t testing.TB, c *lab.Capture, wait time.Duration, match func(ip []byte) bool) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	f, err := c.NextMatch(ctx, func(f lab.Frame) bool { return match(f.Data[14:]) })
	if err != nil {
		if ctx.Err() == nil {
			t.Fatal(err)
		}
		return nil
	}
	return f.Data[14:]
}

func capture(t testing.TB, l *lab.Link) *lab.Capture {
	t.Helper()
	c, err := l.Capture()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// from matches packets with a source address.
func from(src string) func([]byte) bool {
	want := ip(src, src, 0, nil)
	return func(p []byte) bool {
		if len(p) < 20 || p[0]>>4 != want[0]>>4 {
			return false
		}
		if p[0]>>4 == 4 {
			return [4]byte(p[12:]) == [4]byte(want[12:])
		}
		return len(p) >= 40 && [16]byte(p[8:]) == [16]byte(want[8:])
	}
}

const arrival = 3 * time.Second // how long a packet may take through a slow machine

// receiveUDP opens a socket of a host; the returned function gives the next datagram, nil if
// none comes within wait.
func receiveUDP(t testing.TB, h *lab.Host, addr string) func(wait time.Duration) []byte {
	t.Helper()
	c, err := h.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	buf := make([]byte, maxPacket)
	return func(wait time.Duration) []byte {
		c.SetReadDeadline(time.Now().Add(wait))
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return nil
		}
		return buf[:n]
	}
}
