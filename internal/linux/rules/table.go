//go:build linux

package rules

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/netns"
)

// Entry is a handle's stay in the table.
type Entry struct {
	Owner
	ns    *netns.Namespace
	token *token
}

// ErrCrowded means that 256 handles of the same priority are open.
var ErrCrowded = fmt.Errorf("%d handles of this priority are open already; choose another priority", cursor.Subs)

// Open enters a handle into the table of the namespace and removes what dead ones left. It chooses the
// handle's key by its priority, the newest among equals the highest, and asks make for the rules
// with that key. From its return on, the rules work. The namespace must outlive the entry.
func Open(ns *netns.Namespace, o Owner, make func(cursor.Key) ([]Rule, error)) (*Entry, error) {
	e := &Entry{Owner: o, ns: ns}
	err := ns.Do(func() error {
		return change(func(t *tx) (err error) {
			if e.Key, err = t.newKey(o.Priority); err != nil {
				return err
			}
			rules, err := make(e.Key)
			if err != nil {
				return err
			}
			if e.token, err = hold(tokenName(o.ID)); err != nil {
				return err
			}
			return t.enter(e.Owner, rules)
		})
	})
	if err != nil {
		if e.token != nil {
			e.token.release()
		}
		return nil, err
	}
	return e, nil
}

// Replace swaps the handle's rules for others in one transaction: each packet meets either the old ones or
// the new ones. The handle keeps its place.
func (e *Entry) Replace(rules []Rule) error {
	return e.ns.Do(func() error {
		return change(func(t *tx) error {
			t.remove(func(o Owner) bool { return o.ID == e.ID })
			return t.enter(e.Owner, rules)
		})
	})
}

// Close takes the handle's rules out of the table, and the table away if it was the last.
func (e *Entry) Close() error {
	err := e.ns.Do(func() error {
		return change(func(t *tx) error {
			t.bury(func(o Owner) bool { return o.ID == e.ID })
			return nil
		})
	})
	e.token.release()
	return err
}

// Matched returns how many packets the rules of the handle have led to their action, since it was opened.
func (e *Entry) Matched() (n uint64, err error) {
	err = e.ns.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		obj, err := conn.GetObject(counterObject(e.Owner))
		if err != nil {
			return explain(err)
		}
		named, ok := obj.(*nftables.NamedObj)
		if !ok {
			return fmt.Errorf("read the counter of a handle: a %T", obj)
		}
		c, ok := named.Obj.(*expr.Counter)
		if !ok {
			return fmt.Errorf("read the counter of a handle: a %T", named.Obj)
		}
		n = c.Packets
		return nil
	})
	return n, err
}

// Sweep removes the rules of dead handles, and the table if none is left.
func Sweep(ns *netns.Namespace) error {
	return ns.Do(func() error { return change(func(*tx) error { return nil }) })
}

// List returns the living handles of the namespace, the highest key first.
func List(ns *netns.Namespace) (owners []Owner, err error) {
	err = ns.Do(func() error {
		t, err := read()
		if err != nil {
			return err
		}
		for _, o := range t.owners() {
			if o.alive() {
				owners = append(owners, o)
			}
		}
		return nil
	})
	return owners, err
}

// tx is a change of the table: what was read, and the commands gathered since.
type tx struct {
	conn     *nftables.Conn
	exists   bool
	rules    [numChains][]*nftables.Rule
	counters map[string]bool // the names of the handles' counters
	fresh    bool            // commands were gathered
}

// change reads the table under the lock, removes the dead, lets f add its part, and commits all at once.
func change(f func(*tx) error) error {
	l, err := lock()
	if err != nil {
		return err
	}
	defer l.release()
	t, err := read()
	if err != nil {
		return err
	}
	t.bury(func(o Owner) bool { return !o.alive() })
	if err := f(t); err != nil {
		return err
	}
	if t.fresh {
		if err := t.conn.Flush(); err != nil {
			return explain(err)
		}
	}
	return t.fold()
}

// explain names what a refused transaction most often means.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("change nftables rules: %w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("change nftables rules: %w (the kernel lacks nf_tables, nft_compat, xt_NFQUEUE, xt_bpf, nft_fib_inet or nft_tproxy; see `divert doctor`)", err)
	}
	return fmt.Errorf("change nftables rules: %w", err)
}

// read reads the table.
func read() (*tx, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	t := &tx{conn: conn, counters: map[string]bool{}}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, explain(err)
	}
	t.exists = slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	if !t.exists {
		return t, nil
	}
	for c := range numChains {
		// A chain may be missing where somebody else took it away; then it has no rules.
		if t.rules[c], err = conn.GetRules(table, c.ref()); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, explain(err)
		}
	}
	objects, err := conn.GetNamedObjects(table)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, explain(err)
	}
	for _, obj := range objects {
		if o, ok := obj.(*nftables.NamedObj); ok {
			t.counters[o.Name] = true
		}
	}
	return t, nil
}

// owners returns the handles that have rules, the highest key first.
func (t *tx) owners() []Owner {
	byID := map[uint64]Owner{}
	for _, rules := range t.rules {
		for _, r := range rules {
			if o, ok := parseOwner(r.UserData); ok {
				byID[o.ID] = o
			}
		}
	}
	owners := make([]Owner, 0, len(byID))
	for _, o := range byID {
		owners = append(owners, o)
	}
	slices.SortFunc(owners, func(a, b Owner) int { return cmp.Compare(b.Key, a.Key) })
	return owners
}

// newKey chooses the key of a new handle: above all of its priority, or in a gap when the top is taken.
func (t *tx) newKey(priority int16) (cursor.Key, error) {
	var taken [cursor.Subs]bool
	next := 0
	for _, o := range t.owners() {
		if o.Priority == priority {
			taken[o.Key.Sub()] = true
			next = max(next, int(o.Key.Sub())+1)
		}
	}
	for ; next >= 0; next-- {
		if next < cursor.Subs && !taken[next] {
			return cursor.NewKey(priority, uint8(next)), nil
		}
	}
	return 0, ErrCrowded
}

// remove takes away the rules of the owners that match, and returns those.
func (t *tx) remove(match func(Owner) bool) (removed []Owner) {
	verdict := map[uint64]bool{}
	for c := range numChains {
		t.rules[c] = slices.DeleteFunc(t.rules[c], func(r *nftables.Rule) bool {
			o, ok := parseOwner(r.UserData)
			if !ok {
				return false
			}
			gone, known := verdict[o.ID]
			if !known {
				gone = match(o)
				verdict[o.ID] = gone
				if gone {
					removed = append(removed, o)
				}
			}
			if gone {
				_ = t.conn.DelRule(&nftables.Rule{Table: table, Chain: c.ref(), Handle: r.Handle}) // fails only without a handle number
				t.fresh = true
			}
			return gone
		})
	}
	return removed
}

// bury takes away all that belongs to the owners that match.
func (t *tx) bury(match func(Owner) bool) {
	for _, o := range t.remove(match) {
		if t.counters[o.counter()] {
			t.conn.DeleteObject(counterObject(o))
			delete(t.counters, o.counter())
		}
	}
}

// create makes the table and its chains with the rules that are nobody's, and reads them: rules are placed by
// the numbers that the kernel gives them.
func (t *tx) create() error {
	t.conn.AddTable(table)
	for c := range numChains {
		t.conn.AddChain(c.definition())
		for _, f := range chains[c].fixed {
			t.conn.AddRule(&nftables.Rule{Table: table, Chain: c.ref(), Exprs: f.exprs(), UserData: f.userData()})
		}
	}
	if err := t.conn.Flush(); err != nil {
		return explain(err)
	}
	now, err := read()
	if err != nil {
		return err
	}
	t.exists, t.rules = true, now.rules
	return nil
}

// enter adds a handle's rules, each before the first of a lower handle.
func (t *tx) enter(o Owner, rules []Rule) error {
	if !t.exists {
		if err := t.create(); err != nil {
			return err
		}
	}
	t.insert(o, Handles, nil)
	if !t.counters[o.counter()] {
		t.conn.AddObj(counterObject(o))
		t.counters[o.counter()] = true
	}
	for _, r := range rules {
		t.insert(o, r.Chain, r.exprs(o))
		switch {
		case r.Chain == Inbound && len(t.rules[Defrag]) == 0:
			for _, e := range defragRules() {
				t.conn.AddRule(&nftables.Rule{Table: table, Chain: Defrag.ref(), Exprs: e})
				t.fresh = true
			}
		case r.Chain == Outbound && r.Program == NoProgram:
			t.conn.InsertRule(t.rule(o, Outbound, passForwarded()))
			t.conn.AddRule(t.rule(o, Forward, markForwarded()))
		}
	}
	return nil
}

// rule returns a rule of an owner.
func (t *tx) rule(o Owner, c Chain, e []expr.Any) *nftables.Rule {
	t.fresh = true
	return &nftables.Rule{Table: table, Chain: c.ref(), Exprs: e, UserData: o.userData()}
}

// insert adds a rule where the owner's key belongs.
func (t *tx) insert(o Owner, c Chain, e []expr.Any) {
	r := t.rule(o, c, e)
	for _, other := range t.rules[c] {
		if p, ok := parseOwner(other.UserData); ok && p.Key < o.Key || isClosing(other.UserData) {
			r.Position = other.Handle
			t.conn.InsertRule(r)
			return
		}
	}
	t.conn.AddRule(r)
}

// fold takes the table away when no handle is left and no queue of the namespace holds a packet.
func (t *tx) fold() error {
	now, err := read()
	if err != nil || !now.exists || len(now.owners()) > 0 {
		return err
	}
	if waiting, err := packetsWaiting(); err != nil || waiting {
		return nil // an empty table costs nothing; the next change looks again
	}
	now.conn.DelTable(table)
	if err := now.conn.Flush(); err != nil {
		return explain(err)
	}
	return nil
}

// packetsWaiting reports whether any queue of the calling thread's namespace holds a packet
// (net/netfilter/nfnetlink_queue.c, seq_show: the third column).
func packetsWaiting() (bool, error) {
	b, err := os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_queue")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] != "0" {
			return true, nil
		}
	}
	return false, nil
}
