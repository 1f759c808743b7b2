//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// place is the place of a rule in the stack.
type place struct {
	hook     *nftables.ChainHook
	priority int32
}

// chain returns the place at which the engine sees the same packets.
func (t traffic) chain() place {
	if t.Inbound {
		return place{nftables.ChainHookPrerouting, -300}
	}
	return place{nftables.ChainHookPostrouting, 300}
}

// ruleset is a table with one chain and one rule, in the network namespace of the process or thread that made it.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
	chain *nftables.Chain
	also  *ruleset // removed with it, or nil
}

// The tables of the bench.
const (
	contenderTable = "contender"
	answersTable   = "answers"
	sinkTable      = "sink"
)

// install makes a contender's ruleset.
func install(at place, rule []expr.Any) (*ruleset, error) {
	return installNamed(contenderTable, at, rule)
}

// installNamed makes a ruleset.
func installNamed(table string, at place, rule []expr.Any) (*ruleset, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, err
	}
	r := &ruleset{conn: conn, table: &nftables.Table{Name: table, Family: nftables.TableFamilyINet}}
	r.chain = &nftables.Chain{
		Name: "counting", Table: r.table, Type: nftables.ChainTypeFilter, Hooknum: at.hook,
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(at.priority)),
	}
	conn.AddTable(r.table)
	conn.AddChain(r.chain)
	if len(rule) > 0 {
		conn.AddRule(&nftables.Rule{Table: r.table, Chain: r.chain, Exprs: rule})
	}
	if err := conn.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("install a rule: %w", err), conn.CloseLasting())
	}
	return r, nil
}

// packets returns the rule's packet count.
func (r *ruleset) packets() (uint64, error) {
	rules, err := r.conn.GetRules(r.table, r.chain)
	if err != nil {
		return 0, err
	}
	for _, rule := range rules {
		for _, e := range rule.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				return c.Packets, nil
			}
		}
	}
	return 0, errors.New("the counting rule is gone")
}

// remove removes the table.
func (r *ruleset) remove() error {
	r.conn.DelTable(r.table)
	err := errors.Join(r.conn.Flush(), r.conn.CloseLasting())
	if r.also != nil {
		err = errors.Join(err, r.also.remove())
	}
	return err
}

// isIPv4 matches IPv4 packets.
func isIPv4() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{unix.NFPROTO_IPV4}},
	}
}

// Offsets of the addresses in the IPv4 header.
const (
	sourceOffset      = 12
	destinationOffset = 16
)

// atAddress matches IPv4 packets with an address at an offset.
func atAddress(offset uint32, a netip.Addr) []expr.Any {
	return append(isIPv4(),
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: a.AsSlice()})
}

// toPort matches packets of a protocol to a port.
func toPort(protocol byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{protocol}},
		&expr.Payload{DestRegister: unix.NFT_REG_1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

// countAndDrop ends a rule that counts.
func countAndDrop(match []expr.Any) []expr.Any {
	return append(match, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}

// number is the protocol's number.
func (t traffic) number() byte {
	if t.Protocol == "tcp" {
		return unix.IPPROTO_TCP
	}
	return unix.IPPROTO_UDP
}

// nftWorker is a contender that consists of a rule.
type nftWorker struct{ r *ruleset }

func (w nftWorker) counts() (handled, missed uint64, err error) {
	handled, err = w.r.packets()
	return handled, 0, err
}

func (w nftWorker) close() error { return w.r.remove() }

// openNFTDrop drops the load's packets.
func openNFTDrop(t traffic) (worker, error) { return openNFT(t, loadPort) }

// openNFTIdle is a rule that matches nothing.
func openNFTIdle(t traffic) (worker, error) { return openNFT(t, firstIdlePort) }

// openNFTEmpty is a chain without a rule.
func openNFTEmpty(t traffic) (worker, error) {
	r, err := installNamed(contenderTable, t.chain(), nil)
	if err != nil {
		return nil, err
	}
	return emptyChain{r}, nil
}

// emptyChain is a contender without rules.
type emptyChain struct{ r *ruleset }

func (emptyChain) counts() (handled, missed uint64, err error) { return 0, 0, nil }

func (w emptyChain) close() error { return w.r.remove() }

func openNFT(t traffic, port uint16) (worker, error) {
	r, err := install(t.chain(), countAndDrop(toPort(t.number(), port)))
	if err != nil {
		return nil, err
	}
	return nftWorker{r}, nil
}
