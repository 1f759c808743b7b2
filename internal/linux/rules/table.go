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
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/netns"
)

// Entry is a handle's stay in the table.
type Entry struct {
	Owner
	ns       *netns.Namespace
	token    *token
	released bool                        // it is closed, which happens once
	rules    atomic.Int32                // how many stand in the table for it; it changes under the namespace's mutex
	vouched  atomic.Pointer[Credentials] // nil until Vouch
}

// ErrCrowded means that 256 handles of the same priority are open.
var ErrCrowded = fmt.Errorf("%d handles of this priority are open already; choose another priority", cursor.Subs)

// ErrGone means that another program has taken the handle's rules away, as `nft flush ruleset` does.
var ErrGone = errors.New("another program has removed the handle's rules from the nftables table inet " + tableName)

// busyTimeout is how long a change is tried again while others change rules of the namespace all the time. Tests wait less.
var busyTimeout = 10 * time.Second

// ErrBusy means that others have changed rules of the namespace for so long that a change of ours found no moment.
var ErrBusy = errors.New("other programs change the nftables rules of this network all the time, and each change has " +
	"to be made on rules that stand still; `nft monitor` shows who does; try again when they are done")

// Open reserves a place in the table of the namespace for a handle, and removes the remains of dead handles. It chooses
// the handle's key by its priority, the newest among equals the highest. No rule leads packets to the handle until
// Install. The namespace must outlive the entry. Close the entry also if Install fails.
func Open(ns *netns.Namespace, o Owner) (*Entry, error) {
	e := &Entry{Owner: o, ns: ns}
	sockets.begin(ns.Inode())
	err := ns.Do(func() (err error) {
		if e.token, err = newToken(o.ID); err != nil {
			return err
		}
		e.Queue, e.Port = e.token.Num(), e.token.port
		return change(ns, (*tx).bury, (*tx).usable, func(t *tx) (err error) {
			t.remove(e.is) // of a try whose answer was lost
			if e.Key, err = t.newKey(o.Priority); err != nil {
				return err
			}
			t.reserve(e.Owner)
			return nil
		})
	})
	if err != nil {
		e.release()
		return nil, err
	}
	return e, nil
}

// release ends the entry.
func (e *Entry) release() error {
	if e.released {
		return nil
	}
	e.released = true
	sockets.end(e.ns.Inode())
	return e.die()
}

// die gives the token back.
func (e *Entry) die() error {
	if e.token == nil {
		return nil
	}
	err := e.token.Close()
	e.token = nil
	own.leave(ownHandle{e.ID, e.Port})
	return err
}

// Install makes the handle's rules stand in the table. From its return on they work, and others see the handle. Between Open and
// Install the handle may open and load the parts that its rules will ask for: no packet waits for them.
func (e *Entry) Install(rules []Rule) error {
	return e.change(func(t *tx) error {
		if err := t.usable(); err != nil {
			return err
		}
		if len(t.remove(e.is)) == 0 {
			return ErrGone // and its key may be another handle's by now
		}
		t.enterEntry(e, rules)
		return nil
	})
}

// Replace swaps the handle's rules for others in one transaction: each packet meets either the old ones or
// the new ones. The handle keeps its place. Where others have removed the handle's rules its place may be
// taken, so the answer is ErrGone, unless it wants no rules anyway.
func (e *Entry) Replace(rules []Rule) error {
	return e.change(func(t *tx) error {
		removed := t.remove(e.is)
		switch {
		case len(removed) > 0:
			t.enterEntry(e, rules)
		case len(rules) > 0:
			return ErrGone
		}
		return nil
	})
}

// Close takes the handle's rules out of the table, and the table away if it was the last.
func (e *Entry) Close() error {
	// The token first: closing its socket after a change takes long, see conn.end. Others may take the rules away now, too.
	dead := e.die()
	err := e.change(func(t *tx) error { return t.takeAway(e.is) })
	return errors.Join(err, dead, e.release())
}

// is reports whether a rule's owner is this handle.
func (e *Entry) is(o Owner) bool { return o.ID == e.ID }

// change changes rules of all chains and removes the dead.
func (e *Entry) change(f func(*tx) error) error {
	return e.ns.Do(func() error { return change(e.ns, (*tx).load, (*tx).bury, f) })
}

// Matched returns how many packets the rules of the handle have led to their action, since it was opened. It
// fails with ErrGone where others have removed the counter.
func (e *Entry) Matched() (n uint64, err error) {
	err = e.ns.Do(func() error {
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.Close()
		if n, err = c.counter(e.counter()); errors.Is(err, unix.ENOENT) {
			return ErrGone
		}
		return explain(err)
	})
	return n, err
}

// Sweep removes the rules of dead handles, and the table if none is left.
func Sweep(ns *netns.Namespace) error {
	return ns.Do(func() error { return change(ns, (*tx).load, (*tx).bury) })
}

// Dead returns the handles that have rules in the namespace and no process any more.
func Dead(ns *netns.Namespace) (owners []Owner, err error) {
	_, owners, err = look(ns)
	return owners, err
}

// List returns the living handles of the namespace, the highest key first.
func List(ns *netns.Namespace) (owners []Owner, err error) {
	owners, _, err = look(ns)
	return owners, err
}

// look reads which handles of the namespace are alive, with their filters and processes, and which are dead.
func look(ns *netns.Namespace) (alive, dead []Owner, err error) {
	err = ns.Do(func() error {
		t, err := snapshot()
		if err != nil {
			return err
		}
		alive, dead = t.sort()
		return nil
	})
	return alive, dead, err
}

// sort sorts the handles into the living, with their processes, and the dead, each the highest key first.
func (t *tx) sort() (alive, dead []Owner) {
	l := census()
	defer l.close()
	for _, o := range t.owners() {
		switch {
		case !l.alive(o):
			dead = append(dead, o)
		case !o.Opening:
			o.Filter = t.texts[o.ID]
			alive = append(alive, o)
		}
	}
	identify(pointers(alive))
	return alive, dead
}

func pointers(owners []Owner) (ps []*Owner) {
	for i := range owners {
		ps = append(ps, &owners[i])
	}
	return ps
}

// tx is a change of the table: the state that was read, and the changes. The lists of rules are those after the
// change; commands makes the commands that lead to them.
type tx struct {
	conn       *conn
	generation uint32
	table      tableState
	chains     [numChains]bool   // which exist, or will
	rules      [numChains][]rule // of the chain Handles; of the others when they are loaded
	loaded     bool
	filters    map[uint64]bool   // handles that have a chain with their filter
	texts      map[uint64]string // the filters, where they have been read
	foreign    []string          // the changes of another program to the table, in words
	batch      batch
	committed  func() // called after the commit, under the namespace's mutex; nil: nothing is to be done
}

// mutexes serialise the changes that this process makes in a namespace, which would otherwise make each other repeat their work.
// Namespaces may share one.
var mutexes [64]sync.Mutex

func mutexOf(ns *netns.Namespace) *sync.Mutex { return &mutexes[ns.Inode()%uint64(len(mutexes))] }

// change reads the table, lets each of fs add its part, and commits all at once, on a thread of the namespace. Where
// others have changed rules meanwhile it does so again: the fs may run several times, each time on a table as it is.
func change(ns *netns.Namespace, fs ...func(*tx) error) error {
	mu := mutexOf(ns)
	mu.Lock()
	defer mu.Unlock()
	loaded := false
	for start := time.Now(); ; {
		err := attempt(fs)
		switch {
		case errors.Is(err, unix.ENOENT) && !loaded:
			// Perhaps the modules of the extensions are not loaded yet, which is so once after the system has started.
			if loaded = true; LoadExtensions() != nil {
				return err // names the missing feature
			}
		case !again(err):
			return err
		case time.Since(start) > busyTimeout:
			return fmt.Errorf("%w (tried for %v, at last: %w)", ErrBusy, busyTimeout, err)
		}
	}
}

// again reports whether an error may be another at the next try.
func again(err error) bool { return errors.Is(err, errChanged) || errors.Is(err, unix.ENOBUFS) }

// attempt is one try of a change.
func attempt(fs []func(*tx) error) error {
	t, err := read()
	if err != nil {
		return err
	}
	defer t.conn.Close()
	for _, f := range fs {
		if err := f(t); err != nil {
			return err
		}
	}
	t.setGates()
	t.setCutting()
	t.fold()
	t.commands()
	if err := t.conn.commit(&t.batch, t.generation); err != nil {
		return explain(err)
	}
	if t.committed != nil {
		t.committed()
	}
	return nil
}

// explain gives the usual cause of a refused request.
func explain(err error) error {
	switch {
	case err == nil, again(err):
		return err
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("change nftables rules: %w (needs CAP_NET_ADMIN)", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("change nftables rules: %w (the kernel lacks nf_tables, nft_compat, xt_NFQUEUE, xt_bpf, nft_fib_inet or nft_tproxy: see `divert doctor`)", err)
	}
	return fmt.Errorf("change nftables rules: %w", err)
}

// snapshot reads the table, with the filters of the handles, as it was at one moment.
func snapshot() (*tx, error) {
	for start := time.Now(); ; {
		t, err := read()
		if err == nil {
			err = errors.Join(t.load(), t.readFilters())
			t.conn.Close()
		}
		switch {
		case err == nil:
			return t, nil
		case !again(err):
			return nil, err
		case time.Since(start) > busyTimeout:
			return nil, fmt.Errorf("%w (tried for %v, at last: %w)", ErrBusy, busyTimeout, err)
		}
	}
}

// read reads which chains there are and the registry of handles, and fails with errChanged if that was changed meanwhile. The
// rules of the other chains are for load, the filters for readFilters: they are most of the table, and opening a handle needs
// few of them.
func read() (*tx, error) {
	c, err := dial()
	if err != nil {
		return nil, err
	}
	t := &tx{conn: c, filters: map[uint64]bool{}}
	if err = t.read(); err != nil {
		c.Close()
		return nil, explain(err)
	}
	return t, nil
}

// load reads the rules of all chains, as far as that has not been done.
func (t *tx) load() error {
	if t.loaded {
		return nil
	}
	for c := range numChains {
		if c == Handles || !t.chains[c] {
			continue
		}
		var err error
		if t.rules[c], err = t.conn.rules(chains[c].name); err != nil {
			return explain(changedOr(err))
		}
	}
	t.loaded = true
	return explain(t.unchanged())
}

func (t *tx) read() (err error) {
	if t.generation, err = t.conn.generation(); err != nil {
		return err
	}
	if t.table, err = t.conn.table(); err != nil || !t.table.there {
		return err
	}
	if err = t.conn.eachChain(t.found); err != nil {
		return err
	}
	if t.chains[Handles] {
		if t.rules[Handles], err = t.conn.rules(chains[Handles].name); err != nil {
			return changedOr(err)
		}
	}
	return t.unchanged()
}

// unchanged fails with errChanged if the generation is another than at the beginning.
func (t *tx) unchanged() error {
	now, err := t.conn.generation()
	if err == nil && now != t.generation {
		err = errChanged
	}
	return err
}

// changedOr is for errors about something that was there a moment ago.
func changedOr(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return errChanged
	}
	return err
}

// found takes in a chain of the table.
func (t *tx) found(s chainState) {
	for c := range numChains {
		if s.name == chains[c].name {
			t.chains[c] = true
			if wrong := c.differs(s); wrong != "" {
				t.foreign = append(t.foreign, wrong)
			}
			return
		}
	}
	if id, ok := filterChainOf(s.name); ok && !s.hooked {
		t.filters[id] = true
		return
	}
	t.foreign = append(t.foreign, fmt.Sprintf("the chain %q is none of them", s.name))
}

// owners returns the handles that have rules, the highest key first.
func (t *tx) owners() []Owner {
	byID := map[uint64]Owner{}
	for _, rules := range t.rules {
		for _, r := range rules {
			if r.owner != nil {
				byID[r.owner.ID] = *r.owner
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
		t.rules[c] = slices.DeleteFunc(t.rules[c], func(r rule) bool {
			if r.owner == nil {
				return false
			}
			gone, known := verdict[r.owner.ID]
			if !known {
				gone = match(*r.owner)
				verdict[r.owner.ID] = gone
				if gone {
					removed = append(removed, *r.owner)
				}
			}
			if gone && r.number != 0 {
				t.batch.deleteRule(chains[c].name, r.number)
			}
			return gone
		})
	}
	t.rules[Handles] = slices.DeleteFunc(t.rules[Handles], func(r rule) bool {
		if r.demand == nil || !verdict[r.demand.handle] {
			return false
		}
		if r.number != 0 {
			t.batch.deleteRule(chains[Handles].name, r.number)
		}
		return true
	})
	return removed
}

// takeAway takes away all that belongs to the owners that match.
func (t *tx) takeAway(match func(Owner) bool) error {
	for _, o := range t.remove(match) {
		switch _, err := t.conn.counter(o.counter()); {
		case err == nil:
			t.batch.deleteCounter(o.counter())
		case !errors.Is(err, unix.ENOENT):
			return explain(err)
		}
		if t.filters[o.ID] {
			t.batch.deleteChain(o.filterChain())
			delete(t.filters, o.ID)
		}
	}
	return nil
}

// bury takes away all that belongs to the dead.
func (t *tx) bury() error {
	l := census()
	defer l.close()
	dead := func(o Owner) bool { return !l.alive(o) }
	if !t.loaded && !slices.ContainsFunc(t.owners(), dead) {
		return nil
	}
	if err := t.load(); err != nil {
		return err
	}
	return t.takeAway(dead)
}

// needs returns the chains that a handle needs for its rules. Packets pay for every chain in their way, so one that no handle
// needs is not made. Those at one hook are made together: a chain that comes before others while packets wait behind it makes
// the kernel take their place in the list of the hook's chains for another (nf_reinject, net/netfilter/nf_queue.c).
func (o Owner) needs(rules []Rule) (need [numChains]bool) {
	for c := range numChains {
		need[c] = chains[c].hook == nil && c != InboundGate && c != OutboundGate && c != OutboundCut
	}
	for _, r := range rules {
		switch r.Chain {
		case Outbound:
			need[OutboundOrigin], need[Outbound] = true, true
			if r.Program == NoProgram { // see markForwarded
				need[InboundOrigin], need[Forward] = true, true
			}
		case Forward:
			need[InboundOrigin], need[Forward] = true, true
		case OutboundCut:
			need[OutboundOrigin], need[OutboundCut] = true, true
		default: // the note that a packet is for elsewhere goes at Forward
			need[InboundOrigin], need[InboundFragments], need[Inbound], need[Redirected], need[Forward] = true, true, true, true, true
		}
	}
	return need
}

// reserve adds a rule that reserves the key of a handle that is opening.
func (t *tx) reserve(o Owner) {
	t.make(Handles)
	o.Opening = true
	t.insert(o, Handles, nil)
}

// make adds a chain and the rules in it that belong to no handle, as far as they are missing: another program may have flushed
// the table, and without those rules packets would keep their cursors.
func (t *tx) make(c Chain) {
	if !t.table.there {
		t.batch.newTable()
		t.table.there = true
	}
	if !t.chains[c] {
		t.batch.newChain(c.definition())
		t.chains[c] = true
	}
	for _, f := range slices.Backward(chains[c].head) {
		if c.needed(f) && !t.has(c, f) {
			t.rules[c] = slices.Insert(t.rules[c], 0, f.rule())
		}
	}
	for _, f := range chains[c].tail {
		if c.needed(f) && !t.has(c, f) {
			t.rules[c] = append(t.rules[c], f.rule())
		}
	}
}

// has reports whether a fixed rule stands in a chain.
func (t *tx) has(c Chain, f fixed) bool {
	return slices.ContainsFunc(t.rules[c], func(r rule) bool { return f.is(r.data) })
}

// enterEntry adds the rules of a handle of this process, and notes their number when they are there.
func (t *tx) enterEntry(e *Entry, rules []Rule) {
	n := t.enter(e.Owner, rules) + t.vouch(e.Owner, e.vouched.Load())
	t.committed = func() { e.rules.Store(int32(n)) }
}

// enter adds a handle's rules, each before the first of a lower handle, and returns how many it made.
func (t *tx) enter(o Owner, rules []Rule) (n int) {
	for c, needed := range o.needs(rules) {
		if needed {
			t.make(Chain(c))
		}
	}
	o.Opening = false
	n = 1 + len(rules)
	t.insert(o, Handles, nil)
	t.enterFilter(o)
	t.demand(o, rules)
	t.batch.newCounter(o.counter())
	marked := false
	for _, r := range rules {
		switch {
		case r.Chain == Inbound && len(t.rules[Defrag]) == 0:
			for _, e := range defragRules() {
				t.rules[Defrag] = append(t.rules[Defrag], rule{exprs: e})
			}
		case r.Chain == InboundFragments:
			t.insert(o, InboundFragments, fromVRF.exprs()) // not for all: without such handles the chain is empty
			n++
		case r.Chain == Outbound && r.Program == NoProgram && !marked:
			marked = true
			// Beside the handle's own rule: every rule of an owner marks the place of its key.
			t.insert(o, Outbound, passForwarded())
			t.insert(o, Outbound, passUnmarked())
			t.rules[Forward] = append(t.rules[Forward], owned(o, markForwarded()))
			n += 3
		case r.Chain == OutboundCut && !slices.ContainsFunc(t.rules[OutboundCut], o.owns):
			t.insert(o, OutboundCut, toVRF.exprs()) // its port cuts
			n++
		}
		t.insert(o, r.Chain, r.exprs(o))
	}
	return n
}

// insert adds a rule where the owner's key belongs.
func (t *tx) insert(o Owner, c Chain, e []expr.Any) {
	at := slices.IndexFunc(t.rules[c], func(r rule) bool {
		return r.owner != nil && r.owner.Key < o.Key || c.behind(r.data)
	})
	if at < 0 {
		at = len(t.rules[c])
	}
	t.rules[c] = slices.Insert(t.rules[c], at, owned(o, e))
}

// commands adds the commands for the rules that are new: each before the next one that is in the kernel already.
func (t *tx) commands() {
	if !t.table.there {
		return
	}
	for c := range numChains {
		for i := range t.rules[c] {
			r := &t.rules[c][i]
			if r.number != 0 {
				continue
			}
			before := uint64(0)
			if next := slices.IndexFunc(t.rules[c][i:], func(r rule) bool { return r.number != 0 }); next > 0 {
				before = t.rules[c][i+next].number
			}
			t.batch.newRule(chains[c].name, r, before)
		}
	}
}

// fold removes the table when no handle is left, no other program has put anything into it, and no queue of the namespace holds
// a packet.
func (t *tx) fold() {
	// Owners that have rules in other chains only are known if those chains were loaded.
	ours := t.loaded && slices.Contains(t.chains[:], true) && len(t.foreign) == 0 && t.table.flags&flagOwner == 0
	if !t.table.there || !ours || len(t.owners()) > 0 {
		return
	}
	if waiting, err := packetsWaiting(); err != nil || waiting {
		return // an empty table costs nothing; the next change looks again
	}
	t.batch = batch{}
	t.batch.deleteTable()
	t.table.there = false
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
