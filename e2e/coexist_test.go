//go:build linux

package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// neighbourhood is the configuration of other programs on a host.
type neighbourhood struct {
	name  string
	setUp func(t *testing.T, pair *lab.Pair)
	check func(t *testing.T, pair *lab.Pair) // while handles are open
}

// foreignMark is a mark that another program's rules give to packets.
const foreignMark = 0x51820

// foreign is another program's nftables table.
var foreign = &nftables.Table{Name: "foreign", Family: nftables.TableFamilyINet}

// foreignChain adds a base chain to it.
func foreignChain(c *nftables.Conn, name string, hook *nftables.ChainHook, kind nftables.ChainType, priority nftables.ChainPriority, rules ...[]expr.Any) {
	c.AddTable(foreign)
	chain := c.AddChain(&nftables.Chain{Name: name, Table: foreign, Type: kind, Hooknum: hook, Priority: &priority})
	for _, e := range rules {
		c.AddRule(&nftables.Rule{Table: foreign, Chain: chain, Exprs: e})
	}
}

// udpTo matches UDP to a port.
func udpTo(port uint16, then ...expr.Any) []expr.Any {
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}, then...)
}

var neighbourhoods = []neighbourhood{
	{"nothing", func(*testing.T, *lab.Pair) {}, func(*testing.T, *lab.Pair) {}},
	{"marks that choose routes", setUpMarks, func(t *testing.T, pair *lab.Pair) {
		// After the handles, at the very end of the outbound path.
		if n := foreignCounter(t, pair.A, "last"); n == 0 {
			t.Error("no packet had its mark after the handle")
		}
	}},
	{"bridge and masquerading", setUpBridge, func(t *testing.T, pair *lab.Pair) {}},
	{"rules that drop and count", setUpDrop, func(t *testing.T, pair *lab.Pair) {
		echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
		nft(t, pair.A, func(c *nftables.Conn) {
			foreignChain(c, "refuse", nftables.ChainHookOutput, nftables.ChainTypeFilter, 0,
				udpTo(echo.Addr().Port(), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}))
		})
		if n := foreignCounter(t, pair.A, "queue"); n == 0 {
			t.Error("no packet went to the other program's queue")
		}
		if x := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 3, Wait: 20 * time.Millisecond}); x.Echoed != 0 {
			t.Errorf("a packet that another program drops: %+v", x)
		}
		nft(t, pair.A, func(c *nftables.Conn) { c.DelChain(&nftables.Chain{Name: "refuse", Table: foreign}) })
	}},
	{"a program at clsact", setUpClsact, func(*testing.T, *lab.Pair) {}},
	{"connection tracking", setUpConntrack, func(t *testing.T, pair *lab.Pair) {
		if n := foreignCounter(t, pair.A, "established"); n == 0 {
			t.Error("no packet was tracked")
		}
	}},
}

// setUpMarks does the same as wg-quick: a routing rule sends all packets without a certain mark to another table.
func setUpMarks(t *testing.T, pair *lab.Pair) {
	nl, err := pair.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Invert, rule.Table, rule.Priority = family, foreignMark, true, 51820, 100
		if err := nl.RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
	}
	mark := []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(foreignMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}
	marked := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(foreignMark)},
		&expr.Counter{},
	}
	nft(t, pair.A, func(c *nftables.Conn) {
		foreignChain(c, "mark", nftables.ChainHookOutput, nftables.ChainTypeRoute, -150, mark)
		foreignChain(c, "last", nftables.ChainHookPostrouting, nftables.ChainTypeFilter, 1<<31-1, marked)
	})
}

// setUpBridge does the same as docker: a bridge with an address, and masquerading of packets from it.
func setUpBridge(t *testing.T, pair *lab.Pair) {
	nl, err := pair.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
	if err := nl.LinkAdd(br); err != nil {
		t.Skipf("no bridges here: %v", err)
	}
	addr, _ := netlink.ParseAddr("172.17.0.1/16")
	if err := nl.AddrAdd(br, addr); err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkSetUp(br); err != nil {
		t.Fatal(err)
	}
	from := netip.MustParseAddr("172.17.0.0").AsSlice()
	nft(t, pair.A, func(c *nftables.Conn) {
		foreignChain(c, "nat", nftables.ChainHookPostrouting, nftables.ChainTypeNAT, 100, []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{255, 255, 0, 0}, Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from},
			&expr.Masq{},
		})
	})
}

// setUpDrop makes a filter with its own queue, whose listener accepts everything.
func setUpDrop(t *testing.T, pair *lab.Pair) {
	var q *queue.Queue
	if err := pair.A.Do(func() (err error) {
		q, err = queue.Open(queue.Options{MaxLen: 1000, RcvBuf: 1 << 20})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	verdicts, err := q.NewVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := q.NewReader(1)
		b := make([]byte, queue.BufferSize)
		for {
			r.Slot(0, b)
			if n, err := r.Recv(engine.Wait{}, 1); n == 0 || err != nil {
				return
			}
			n, _ := r.Len(0)
			var m queue.Message
			if m.Parse(b[:n]) == queue.KindPacket {
				verdicts.Add(m.ID, queue.Accept, queue.Option{})
				verdicts.Flush()
			}
		}
	}()
	t.Cleanup(func() { q.Close(); <-done })
	info := make(xt.Unknown, 8) // struct xt_NFQ_info_v3: number, count, flags
	binary.NativeEndian.PutUint16(info, q.Num())
	binary.NativeEndian.PutUint16(info[2:], 1)
	nft(t, pair.A, func(c *nftables.Conn) {
		foreignChain(c, "queue", nftables.ChainHookOutput, nftables.ChainTypeFilter, 5, []expr.Any{
			&expr.Counter{}, &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info},
		})
		foreignChain(c, "in", nftables.ChainHookInput, nftables.ChainTypeFilter, 5, udpTo(9, &expr.Verdict{Kind: expr.VerdictDrop}))
	})
}

// setUpClsact attaches a program that accepts everything to ingress and egress.
func setUpClsact(t *testing.T, pair *lab.Pair) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, -1), // TC_ACT_UNSPEC
		asm.Return(),
	}})
	if err != nil {
		t.Skipf("no eBPF here: %v", err)
	}
	defer p.Close()
	nl, err := pair.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	index := pair.LinkA.Index()
	if err := nl.QdiscAdd(&netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}); err != nil {
		t.Fatal(err)
	}
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if err := nl.FilterAdd(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: parent, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
		}, Fd: p.FD(), Name: "foreign", DirectAction: true}); err != nil {
			t.Fatal(err)
		}
	}
}

// setUpConntrack enables connection tracking and counts tracked packets.
func setUpConntrack(t *testing.T, pair *lab.Pair) {
	nft(t, pair.A, func(c *nftables.Conn) {
		foreignChain(c, "established", nftables.ChainHookInput, nftables.ChainTypeFilter, 0, []expr.Any{
			&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED), Xor: make([]byte, 4)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
			&expr.Counter{},
		})
	})
}

// foreignCounter returns the value of the first counter in a foreign chain.
func foreignCounter(t testing.TB, h *lab.Host, chain string) (n uint64) {
	t.Helper()
	if err := h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		rules, err := c.GetRules(foreign, &nftables.Chain{Name: chain, Table: foreign})
		for _, r := range rules {
			for _, e := range r.Exprs {
				if k, ok := e.(*expr.Counter); ok {
					n += k.Packets
				}
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// setUpOf describes the configuration of a host: nftables rules without their counts, routing rules, routes,
// interfaces, queueing disciplines and filters of traffic control.
func setUpOf(t testing.TB, h *lab.Host) string {
	t.Helper()
	var s []string
	add := func(what string, v any) { s = append(s, fmt.Sprintf("%s: %+v", what, v)) }
	if err := h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := c.ListChains()
		if err != nil {
			return err
		}
		for _, chain := range chains {
			rules, err := c.GetRules(chain.Table, chain)
			if err != nil {
				return err
			}
			add("chain", fmt.Sprint(chain.Table.Name, " ", chain.Name, " ", chain.Type))
			for _, r := range rules {
				for _, e := range r.Exprs {
					if _, ok := e.(*expr.Counter); ok {
						continue
					}
					b, err := expr.Marshal(byte(chain.Table.Family), e)
					if err != nil {
						return err
					}
					add("rule", fmt.Sprintf("%d %T %x", r.Handle, e, b))
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	nl, err := h.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	rules, err := nl.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		add("routing rule", r)
	}
	routes, err := nl.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		add("route", r)
	}
	links, err := nl.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		add("interface", fmt.Sprint(l.Attrs().Index, l.Attrs().Name, l.Type(), l.Attrs().MTU, l.Attrs().Flags, l.Attrs().Promisc))
		qs, err := nl.QdiscList(l)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range qs {
			add("qdisc", fmt.Sprint(l.Attrs().Name, q.Type(), q.Attrs().Handle, q.Attrs().Parent))
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			fs, _ := nl.FilterList(l, parent) // fails without clsact
			for _, f := range fs {
				add("filter", fmt.Sprint(l.Attrs().Name, f.Type(), f.Attrs().Handle))
			}
		}
	}
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter", "net.ipv4.conf.eth0.accept_local"} {
		v, err := h.SysctlValue(name)
		if err != nil {
			t.Fatal(err)
		}
		add(name, v)
	}
	slices.Sort(s)
	return strings.Join(s, "\n")
}

// sweep does the same as "divert clean" in the namespace of the calling thread.
func sweep() error {
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	return errors.Join(rules.Sweep(ns), ns.Close())
}

// TestCoexistence: the configuration of other programs keeps working while a handle is open, and is unchanged after the
// handle has closed.
func TestCoexistence(t *testing.T) {
	t.Parallel()
	for _, n := range neighbourhoods {
		t.Run(n.name, func(t *testing.T) {
			eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
				n.setUp(t, pair)
				before := setUpOf(t, pair.A)
				d := openAt(t, pair.A, "udp or tcp", e)
				low := openAt(t, pair.A, "udp", e, divert.WithPriority(-1))
				w, lw := resend(t, d), passthru(t, low)
				for _, f := range families {
					echo := echoAt(t, pair.B, "udp", f.addr(pair.B))
					if x := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 10}); x.Echoed != 10 {
						t.Errorf("%s: %+v", f.name, x)
					}
					transfer(t, pair.B, pair.A, f.addr(pair.A), 1<<20)
				}
				a := divert.Address{}
				a.SetNetwork(packet.NetworkData{IfIdx: uint32(pair.LinkA.Index())})
				if err := d.Send(&divert.Packet{Data: craft(t, "10.77.0.2", "10.77.0.1", 9, nil), Addr: a}); err != nil {
					skipWithoutDevice(t, err)
					t.Error(err)
				}
				n.check(t, pair)
				finish(t, d, w)
				finish(t, low, lw)
				if s := stats(t, low); s.Received < 40 {
					t.Errorf("the lower handle saw %d packets", s.Received)
				}
				for _, h := range []*divert.Handle{d, low} {
					if err := h.Close(); err != nil {
						t.Error(err)
					}
				}
				deadline := time.Now().Add(5 * time.Second)
				after := setUpOf(t, pair.A)
				for after != before && time.Now().Before(deadline) {
					time.Sleep(20 * time.Millisecond) // the kernel removes devices with a delay
					// The table stays if a packet waits in the other program's queue; the next sweep removes it.
					if err := pair.A.Do(sweep); err != nil {
						t.Fatal(err)
					}
					after = setUpOf(t, pair.A)
				}
				if after != before {
					t.Errorf("before:\n%s\nafter:\n%s", before, after)
				}
			})
		})
	}
}
