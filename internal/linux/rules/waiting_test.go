//go:build linux

package rules

import (
	"net"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
)

// Removing a base chain would make the kernel drop packets that wait in the queues of others.
func TestTheTableStaysWhilePacketsWait(t *testing.T) {
	h, ns := newHost(t)
	var q *queue.Queue
	do(t, h, func() (err error) { q, err = queue.Open(queue.Options{MaxLen: 10, RcvBuf: 1 << 20}); return err })
	defer q.Close()
	theirs := &nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet}
	nft(t, h, func(c *nftables.Conn) error {
		c.AddTable(theirs)
		chain := c.AddChain(&nftables.Chain{Name: "out", Table: theirs, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
		c.AddRule(&nftables.Rule{Table: theirs, Chain: chain, Exprs: ToQueue{Num: q.Num()}.exprs(Outbound)})
		return nil
	})
	e := open(t, ns, 1, 0)
	received, err := h.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer received.Close()
	do(t, h, func() error {
		c, err := net.Dial("udp", received.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	})
	if err := q.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	slot := make([]byte, queue.BufferSize)
	r := q.NewReader(1)
	r.Slot(0, slot)
	if _, err := r.Recv(engine.Wait{}, 1); err != nil {
		t.Fatal(err)
	}
	n, _ := r.Len(0)
	var m queue.Message
	if kind := m.Parse(slot[:n]); kind != queue.KindPacket {
		t.Fatalf("datagram of kind %d", kind)
	}

	closeAll(t, e)
	all, counters := comments(t, h)
	if len(all[Handles]) != 0 || len(counters) != 0 || len(all[Outbound]) != len(needed(Outbound)) {
		t.Errorf("while a packet waits: %q, counters %q", all, counters)
	}
	if err := Sweep(ns); err != nil {
		t.Fatal(err)
	}
	if all, _ := comments(t, h); len(all[Outbound]) != len(needed(Outbound)) {
		t.Error("Sweep took the table away while a packet waits")
	}

	v, err := q.NewVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Add(m.ID, queue.Accept, queue.Option{}); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := received.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := received.ReadFrom(make([]byte, 10)); err != nil {
		t.Errorf("the packet that waited: %v", err)
	}
	if err := Sweep(ns); err != nil {
		t.Fatal(err)
	}
	noTable(t, h)
}
