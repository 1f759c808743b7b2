package redirect

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// FuzzTable compares the table with a list of all flows entered, over sequences of calls.
func FuzzTable(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 0, 2, 0, 0, 3, 0, 1, 7, 200})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 3, 2, 0, 4, 1, 5, 2, 6, 0, 7, 255, 0, 0})
	f.Add([]byte{1, 5, 1, 5, 8, 0, 1, 5, 1, 6, 1, 7, 1, 4, 9, 2})
	f.Fuzz(func(t *testing.T, calls []byte) {
		x := listed{t: t, table: newTable(3, firstAlias+1), now: time.Unix(1e9, 0)}
		calls = calls[:min(len(calls), 400)]
		for ; len(calls) >= 2; calls = calls[2:] {
			x.call(calls[0]%10, calls[1])
			x.check()
		}
	})
}

// listed is a table beside a list of its entries.
type listed struct {
	t     *testing.T
	table *table
	flows []*listedFlow // of TCP, in the order in which they were entered
	udp   map[ends]*flow
	now   time.Time
}

// listedFlow is a flow with its state in the test's list.
type listedFlow struct {
	*flow
	gone, over           bool // forgotten; ended
	clientDone, hostDone bool
	released             bool
	half                 net.Conn
}

// endsOf returns one of eight pairs of ends.
func endsOf(b byte) ends {
	client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1 + b&1}), 4000+uint16(b>>1&1))
	return ends{client, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, 1 + b>>2&1}), 443)}
}

// live returns the number of flows that count against the limit.
func (x *listed) live() (n int) {
	for _, f := range x.flows {
		if !f.over {
			n++
		}
	}
	return n + len(x.udp)
}

// call makes a call. The argument chooses ends or one of the flows.
func (x *listed) call(what, arg byte) {
	t := x.t
	switch what {
	case 0:
		f := &flow{ends: endsOf(arg), held: arg>>3&1 != 0, syn: []byte{arg}}
		f.last.Store(x.now.Unix())
		full := x.live() >= x.table.max
		if ok := x.table.add(f); ok == full {
			t.Fatalf("add: %v with %d live flows", ok, x.live())
		}
		if !full {
			x.flows = append(x.flows, &listedFlow{flow: f})
		}
		return
	case 1:
		f := &flow{ends: endsOf(arg)}
		want, full := f, x.live() >= x.table.max
		if old := x.udp[f.ends]; old != nil {
			want = old
		} else if full {
			want = nil
		}
		if got := x.table.addUDP(f); got != want {
			t.Fatalf("addUDP: %p, want %p", got, want)
		}
		if want != nil {
			if x.udp == nil {
				x.udp = map[ends]*flow{}
			}
			x.udp[f.ends] = want
		}
		return
	case 2:
		if f := x.udp[endsOf(arg)]; f != nil {
			x.table.removeUDP(f)
			x.table.removeUDP(f) // the second time it does nothing
			delete(x.udp, f.ends)
		}
		return
	case 3:
		x.now = x.now.Add(time.Duration(arg) * time.Second)
		return
	case 4:
		x.sweep()
		return
	}
	if len(x.flows) == 0 {
		return
	}
	f := x.flows[int(arg)%len(x.flows)]
	switch what {
	case 5:
		client, fin, rst := arg>>7 != 0, arg>>6&1 != 0, arg>>5&1 != 0
		x.table.note(f.flow, client, fin, rst)
		f.clientDone, f.hostDone = f.clientDone || fin && client, f.hostDone || fin && !client
		f.over = f.over || rst || f.clientDone && f.hostDone
	case 6:
		x.table.remove(f.flow)
		f.gone, f.over = true, true
	case 7:
		half, _ := net.Pipe()
		syn := x.table.release(f.flow, half)
		if (len(syn) == 1) == f.released {
			t.Fatalf("release: a SYN of %d bytes, released before: %v", len(syn), f.released)
		}
		f.half, f.released = half, true
	case 8:
		if got := x.table.takeUpstream(f.flow); got != f.half {
			t.Fatalf("takeUpstream: %v, want %v", got, f.half)
		}
		f.half = nil
	case 9:
		x.table.own(f.flow, arg&1 != 0)
		f.last.Store(x.now.Unix())
	}
}

// sweep sweeps, and works out which flows that must remove.
func (x *listed) sweep() {
	var orphans []net.Conn
	for _, f := range x.flows {
		age := x.now.Sub(time.Unix(f.last.Load(), 0))
		stays := f.over || f.accepted || age <= silence
		if f.over {
			stays = age <= linger
		}
		if f.gone || x.table.holds(f.flow) || stays {
			continue
		}
		if f.gone, f.over = true, true; f.half != nil {
			orphans, f.half = append(orphans, f.half), nil
		}
	}
	if got := x.table.sweep(x.now); len(got) != len(orphans) {
		x.t.Fatalf("sweep: %d orphans, want %d", len(got), len(orphans))
	}
}

// check compares the table's answers with the list.
func (x *listed) check() {
	t, begun := x.t, 0
	newest, aliases := map[ends]*flow{}, map[netip.AddrPort]*flow{}
	for _, f := range x.flows {
		if f.gone {
			delete(newest, f.ends)
			if x.table.findAlias(f.alias) == f.flow {
				t.Fatalf("the alias %v of a flow that is forgotten", f.alias)
			}
			continue
		}
		if !f.over {
			begun++
		}
		if other := aliases[f.alias]; other != nil || f.alias.Port() == x.table.reserved || f.alias.Addr() != f.dst.Addr() {
			t.Fatalf("the alias %v is not of this flow alone", f.alias)
		}
		newest[f.ends], aliases[f.alias] = f.flow, f.flow
		if x.table.findAlias(f.alias) != f.flow {
			t.Fatalf("the alias %v is lost", f.alias)
		}
	}
	for b := range byte(8) {
		e := endsOf(b)
		if got := x.table.find(e); got != newest[e] {
			t.Fatalf("%v: not the newest flow", e)
		}
		if got := x.table.findUDP(e); got != x.udp[e] {
			t.Fatalf("%v: exchange %p, want %p", e, got, x.udp[e])
		}
	}
	if n := x.table.open(); n != begun || x.table.live != x.live() {
		t.Fatalf("%d open and %d live, want %d and %d", n, x.table.live, begun, x.live())
	}
}
