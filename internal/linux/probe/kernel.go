//go:build linux

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
)

// table is where rules are tried; it is taken away after each try.
var table = &nftables.Table{Name: "probe", Family: nftables.TableFamilyINet}

// chain returns a chain of the table for a hook.
func chain(name string, hook *nftables.ChainHook) *nftables.Chain {
	return &nftables.Chain{
		Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook,
		Priority: nftables.ChainPriorityRef(-300),
	}
}

// withRules enters rules, one for each list of expressions, into a chain for as long as f runs.
func withRules(hook *nftables.ChainHook, f func(*nftables.Conn, *nftables.Chain) error, rules ...[]expr.Any) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.AddTable(table)
	c := conn.AddChain(chain("try", hook))
	for _, e := range rules {
		conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: e})
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	err = f(conn, c)
	conn.DelTable(table)
	return errors.Join(err, conn.Flush())
}

// enter tries a rule with the expressions at PRE_ROUTING, in the calling thread's namespace.
func enter(e ...expr.Any) error {
	return withRules(nftables.ChainHookPrerouting, func(*nftables.Conn, *nftables.Chain) error { return nil }, e)
}

// rule tests for expressions.
func rule(e ...expr.Any) func(*Prober) error {
	return inside(func() error { return enter(e...) })
}

// namedCounter tries a counter that is an object of the table.
func namedCounter() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	conn.AddTable(table)
	c := conn.AddChain(chain("try", nftables.ChainHookPrerouting))
	conn.AddObj(&nftables.NamedObj{Table: table, Name: "n", Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	conn.AddRule(&nftables.Rule{Table: table, Chain: c, Exprs: []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: "n"}}})
	if err := conn.Flush(); err != nil {
		return err
	}
	conn.DelTable(table)
	return conn.Flush()
}

// toQueue is the target NFQUEUE, revision 3, for one queue that packets pass if nobody has bound it
// (struct xt_NFQ_info_v3, linux/netfilter/xt_NFQUEUE.h).
func toQueue(num uint16) expr.Any {
	info := make(xt.Unknown, 8)
	binary.NativeEndian.PutUint16(info[0:], num)
	binary.NativeEndian.PutUint16(info[2:], 1)
	binary.NativeEndian.PutUint16(info[4:], 1)
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}
}

// askProgram is the match bpf, revision 1, with a descriptor (struct xt_bpf_info_v1, linux/netfilter/xt_bpf.h).
func askProgram(fd int) expr.Any {
	info := make(xt.Unknown, 528)
	binary.NativeEndian.PutUint16(info[0:], 2)
	binary.NativeEndian.PutUint32(info[4:], uint32(fd))
	return &expr.Match{Name: "bpf", Rev: 1, Info: &info}
}

// probePriority is the priority that the verdict of verdictPriority sets.
const probePriority = 0xd1234567

// errNotSet means that a verdict's priority has had no effect.
var errNotSet = errors.New("the kernel ignores the priority in a verdict")

// verdictPriority sends a datagram through its rules once more with a priority, and looks whether it has the priority then.
func verdictPriority(p *Prober) error {
	return p.inside(func() error {
		q, err := queue.Open(queue.Options{MaxLen: 16, RcvBuf: 1 << 16})
		if err != nil {
			return err
		}
		defer q.Close()
		counted := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: unix.NFT_REG_1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binaryutil.NativeEndian.PutUint32(probePriority)},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}
		// No packet may wait in the queue when the chain is taken away: kernels up to 6.1 at least complain of it in their
		// log (nf_reinject). So the answer to the datagram passes, and packets that are queued once more go on.
		queued := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{unix.IPPROTO_UDP}},
			toQueue(q.Num()),
		}
		return withRules(nftables.ChainHookOutput, func(conn *nftables.Conn, c *nftables.Chain) error {
			if err := sendOverLoopback(); err != nil {
				return err
			}
			if err := verdict(q, queue.Repeat, queue.Option{Priority: probePriority, SetPriority: true}); err != nil {
				return err
			}
			n, err := countOf(conn, c)
			if n == 0 {
				err = errors.Join(err, verdict(q, queue.Accept, queue.Option{}))
			}
			if err == nil && n == 0 {
				err = errNotSet
			}
			return err
		}, counted, queued)
	})
}

// sendOverLoopback sends a datagram that nobody receives.
func sendOverLoopback() error {
	c, err := net.Dial("udp4", "127.0.0.1:9")
	if err != nil {
		return err
	}
	_, err = c.Write([]byte("probe"))
	return errors.Join(err, c.Close())
}

// verdict receives a packet of the queue and gives it its verdict.
func verdict(q *queue.Queue, what queue.Verdict, o queue.Option) error {
	if err := q.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	slot := make([]byte, queue.BufferSize)
	r := q.NewReader(1)
	r.Slot(0, slot)
	if _, err := r.Recv(engine.Wait{}, 1); err != nil {
		return err
	}
	n, _ := r.Len(0)
	var m queue.Message
	if kind := m.Parse(slot[:n]); kind != queue.KindPacket {
		return fmt.Errorf("the queue gave a datagram of kind %d, not a packet", kind)
	}
	v, err := q.NewVerdicts()
	if err != nil {
		return err
	}
	if err := v.Add(m.ID, what, o); err != nil {
		return err
	}
	return v.Flush() // the packet goes on before this returns
}

// countOf returns the counter in the first rule of a chain that has one.
func countOf(conn *nftables.Conn, c *nftables.Chain) (uint64, error) {
	rules, err := conn.GetRules(table, c)
	if err != nil {
		return 0, err
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if n, ok := e.(*expr.Counter); ok {
				return n.Packets, nil
			}
		}
	}
	return 0, errors.New("the rule with the counter is not there")
}

// redirect tries to hand packets that come in on the loopback interface to an ingress.
func redirect(p *Prober) error {
	if p.host == nil {
		return p.inside(nil)
	}
	nl, err := p.host.Netlink()
	if err != nil {
		return err
	}
	defer nl.Close()
	lo := p.host.Loopback().Index()
	qdisc := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: lo, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := nl.QdiscAdd(qdisc); err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	err = nl.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: lo, Parent: qdisc.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Sel:         &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Keys: []netlink.TcU32Key{{Mask: 0xffffffff, Val: 1, Off: -6}}},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_INGRESS_REDIR, Ifindex: lo,
		}},
	})
	if err != nil {
		err = fmt.Errorf("u32 and mirred: %w", err)
	}
	return errors.Join(err, nl.QdiscDel(qdisc))
}
