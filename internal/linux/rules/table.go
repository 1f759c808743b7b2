//go:build linux

package rules

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/packet"
)

// Entry is a handle's stay in the table.
type Entry struct {
	Owner
	ns    *netns.Namespace
	token *token
	rules atomic.Int32   // how many stand in the table for it; it changes while the table is locked
	below atomic.Uint32  // the chains in which other handles stand below this one
	work  sync.WaitGroup // answer
}

// ErrCrowded means that 256 handles of the same priority are open.
var ErrCrowded = fmt.Errorf("%d handles of this priority are open already; choose another priority", cursor.Subs)

// ErrGone means that another program has taken the handle's rules away, as `nft flush ruleset` does.
var ErrGone = errors.New("another program has removed the handle's rules from the nftables table inet " + tableName)

// Open enters a handle into the table of the namespace and removes what dead ones left. It chooses the
// handle's key by its priority, the newest among equals the highest, and asks make for the rules
// with that key. From its return on, the rules work. The namespace must outlive the entry.
func Open(ns *netns.Namespace, o Owner, make func(cursor.Key) ([]Rule, error)) (*Entry, error) {
	e := &Entry{Owner: o, ns: ns}
	err := ns.Do(func() error {
		var above []uint64
		err := change(func(t *tx) (err error) {
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
			e.lookBelow(t)
			above = t.above(e.Owner, chainsOf(rules))
			return e.enter(t, rules)
		})
		if err == nil {
			tell(above, true)
		}
		return err
	})
	if err != nil {
		if e.token != nil {
			e.token.release()
		}
		return nil, err
	}
	e.work.Go(e.answer)
	return e, nil
}

// enter adds the handle's rules to a change of the table.
func (e *Entry) enter(t *tx, rules []Rule) error {
	n, err := t.enter(e.Owner, rules)
	e.rules.Store(int32(n))
	return err
}

// Replace swaps the handle's rules for others in one transaction: each packet meets either the old ones or
// the new ones. The handle keeps its place. Where others have removed the handle's rules its place may be
// taken, so the answer is ErrGone, unless it wants no rules anyway.
func (e *Entry) Replace(rules []Rule) error {
	return e.ns.Do(func() error {
		return change(func(t *tx) (err error) {
			removed := t.remove(func(o Owner) bool { return o.ID == e.ID })
			switch {
			case len(removed) > 0:
				return e.enter(t, rules)
			case len(rules) > 0:
				return ErrGone
			}
			return nil
		})
	})
}

// Close takes the handle's rules out of the table, and the table away if it was the last.
func (e *Entry) Close() error {
	err := e.ns.Do(func() error {
		var above []uint64
		err := change(func(t *tx) error {
			above = t.above(e.Owner, t.places(e.Owner))
			t.bury(func(o Owner) bool { return o.ID == e.ID })
			return nil
		})
		if err == nil {
			tell(above, false)
		}
		return err
	})
	e.token.release()
	e.work.Wait()
	return err
}

// Matched returns how many packets the rules of the handle have led to their action, since it was opened. It
// fails with ErrGone where others have removed the counter.
func (e *Entry) Matched() (n uint64, err error) {
	err = e.ns.Do(func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		obj, err := conn.GetObject(counterObject(e.Owner))
		if err != nil {
			// The library does not tell what the kernel answered.
			if t, failed := readLocked(); failed == nil && !t.counters[e.counter()] {
				return ErrGone
			}
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

// Dead returns the handles that have rules in the namespace and no process any more.
func Dead(ns *netns.Namespace) (owners []Owner, err error) {
	err = ns.Do(func() error {
		t, err := readLocked()
		if err != nil {
			return err
		}
		owners = slices.DeleteFunc(t.owners(), Owner.alive)
		return nil
	})
	return owners, err
}

// List returns the living handles of the namespace, the highest key first.
func List(ns *netns.Namespace) (owners []Owner, err error) {
	err = ns.Do(func() error {
		t, err := readLocked()
		if err != nil {
			return err
		}
		filters := t.filters()
		for _, o := range t.owners() {
			if o.alive() {
				o.Filter = filters[o.ID]
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
	chains   [numChains]bool // which exist
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
			_ = t.fold() // the chains may have been made for nothing
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
		return fmt.Errorf("change nftables rules: %w (the kernel lacks nf_tables, nft_compat, xt_NFQUEUE, xt_bpf, nft_fib_inet or nft_tproxy, see `divert doctor`; or another program has changed the table inet "+tableName+")", err)
	}
	return fmt.Errorf("change nftables rules: %w", err)
}

// readLocked reads the table while nobody changes it.
func readLocked() (*tx, error) {
	l, err := lock()
	if err != nil {
		return nil, err
	}
	defer l.release()
	return read()
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
	there, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, explain(err)
	}
	for c := range numChains {
		// Somebody else may have taken it away.
		t.chains[c] = slices.ContainsFunc(there, func(d *nftables.Chain) bool {
			return d.Table.Name == tableName && d.Name == chains[c].name
		})
		if !t.chains[c] {
			continue
		}
		if t.rules[c], err = conn.GetRules(table, c.ref()); err != nil {
			return nil, explain(err)
		}
	}
	objects, err := conn.GetNamedObjects(table)
	if err != nil {
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

// needs reports whether a handle needs a chain. Packets pay for every chain in their path, so handles that have
// none to do with packets make do with the others.
func (o Owner) needs(c Chain) bool {
	return chains[c].hook == nil || o.Layer == uint8(packet.LayerNetwork) || o.Layer == uint8(packet.LayerForward)
}

// complete reports whether the chains that a handle needs, and the rules that are nobody's, are there. Somebody
// may have flushed the table; without those rules packets would keep their cursors.
func (t *tx) complete(o Owner) bool {
	for c := range numChains {
		if !o.needs(c) {
			continue
		}
		if !t.chains[c] {
			return false
		}
		for _, f := range chains[c].fixed {
			if !t.has(c, f) {
				return false
			}
		}
	}
	return t.exists
}

// has reports whether a fixed rule stands in a chain.
func (t *tx) has(c Chain, f fixed) bool {
	return slices.ContainsFunc(t.rules[c], func(r *nftables.Rule) bool { return f.is(r.UserData) })
}

// create makes what a handle misses of the table, its chains and the rules that are nobody's, and reads them:
// rules are placed by the numbers that the kernel gives them.
func (t *tx) create(o Owner) error {
	t.conn.AddTable(table)
	for c := range numChains {
		if !o.needs(c) {
			continue
		}
		t.conn.AddChain(c.definition())
		for _, f := range chains[c].fixed {
			r := &nftables.Rule{Table: table, Chain: c.ref(), Exprs: f.exprs(), UserData: f.userData()}
			switch {
			case t.has(c, f):
			case f != closing:
				t.conn.InsertRule(r)
			default:
				t.conn.AddRule(r)
			}
		}
	}
	if err := t.conn.Flush(); err != nil {
		return explain(err)
	}
	now, err := read()
	if err != nil {
		return err
	}
	t.exists, t.chains, t.rules, t.counters = true, now.chains, now.rules, now.counters
	return nil
}

// counts returns how many rules each handle has.
func (t *tx) counts() map[uint64]int {
	n := map[uint64]int{}
	for _, rules := range t.rules {
		for _, r := range rules {
			if o, ok := parseOwner(r.UserData); ok {
				n[o.ID]++
			}
		}
	}
	return n
}

// enter adds a handle's rules, each before the first of a lower handle, and returns how many it made.
func (t *tx) enter(o Owner, rules []Rule) (n int, err error) {
	if !t.complete(o) {
		if err := t.create(o); err != nil {
			return 0, err
		}
	}
	n = 1 + len(rules)
	t.insert(o, Handles, nil)
	n += t.enterFilter(o)
	if !t.counters[o.counter()] {
		t.conn.AddObj(counterObject(o))
		t.counters[o.counter()] = true
	}
	for _, r := range rules {
		switch {
		case r.Chain == Inbound && len(t.rules[Defrag]) == 0:
			for _, e := range defragRules() {
				t.conn.AddRule(&nftables.Rule{Table: table, Chain: Defrag.ref(), Exprs: e})
				t.fresh = true
			}
		case r.Chain == Outbound && r.Program == NoProgram:
			// Beside the handle's own rule: every rule of an owner marks the place of its key.
			t.insert(o, Outbound, passForwarded())
			t.conn.AddRule(t.rule(o, Forward, markForwarded()))
			n += 2
		}
		t.insert(o, r.Chain, r.exprs(o))
	}
	return n, nil
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
		if p, ok := parseOwner(other.UserData); ok && p.Key < o.Key || closing.is(other.UserData) {
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
	const dir = "/proc/thread-self/net/netfilter"
	b, err := os.ReadFile(dir + "/nfnetlink_queue")
	if errors.Is(err, os.ErrNotExist) {
		// Without the module there are no queues. Without /proc nobody knows.
		_, err = os.Stat(dir)
	}
	return holdsPackets(string(b)), err
}

// holdsPackets reads the kernel's table of queues.
func holdsPackets(queues string) bool {
	for line := range strings.Lines(queues) {
		if f := strings.Fields(line); len(f) > 2 && f[2] != "0" {
			return true
		}
	}
	return false
}
