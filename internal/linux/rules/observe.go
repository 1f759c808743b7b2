//go:build linux

package rules

import (
	"cmp"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/nfnl"
)

// Change is a handle that was opened or closed.
type Change struct {
	Owner
	Closed bool
}

// Observer follows which handles of a namespace are open. It belongs to one goroutine, Close excepted.
type Observer struct {
	ns      *netns.Namespace
	conn    *netlink.Conn
	known   map[uint64]Owner      // open handles, by id
	numbers map[uint64]uint64     // ids of handles, by the numbers of their rules
	filters map[uint64]filterText // of handles whose rules are just coming
	fresh   map[uint64]Owner      // whose rules the transaction that is being read adds
	gone    map[uint64]bool       // whose rules it removes
	buried  map[uint64]bool       // whose process was found dead, or whose owner had closed them before all messages were read
	seen    uint32                // the generation of the rules that was read last
	checked time.Time
}

// checkInterval is how often an observer looks whether processes have died.
const checkInterval = 200 * time.Millisecond

// Observe begins to follow the handles of a namespace, which must outlive the observer. It returns those
// that are open, the oldest first.
func Observe(ns *netns.Namespace) (*Observer, []Owner, error) {
	o := &Observer{
		ns: ns, known: map[uint64]Owner{}, numbers: map[uint64]uint64{},
		filters: map[uint64]filterText{}, fresh: map[uint64]Owner{}, gone: map[uint64]bool{}, buried: map[uint64]bool{},
	}
	var open []Owner
	err := ns.Do(func() (err error) {
		if o.conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
			return err
		}
		if err := o.conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
			return explain(err)
		}
		_ = o.conn.SetReadBuffer(observeBuffer) // a smaller one means to read the table now and then
		open, err = o.read()
		return err
	})
	if err != nil {
		if o.conn != nil {
			o.conn.Close()
		}
		return nil, nil, err
	}
	return o, open, nil
}

// observeBuffer is the receive buffer of an observer, in bytes: a thousand handles opened at once.
const observeBuffer = 4 << 20

// Close ends Next with os.ErrClosed.
func (o *Observer) Close() error { return o.conn.Close() }

// read takes over the state of the table, and returns the living handles, the oldest first. Messages about these changes
// that are still to come do not report them again.
func (o *Observer) read() ([]Owner, error) {
	t, err := snapshot()
	if err != nil {
		return nil, err
	}
	clear(o.known)
	clear(o.numbers)
	clear(o.buried)
	o.seen = t.generation
	for _, r := range t.rules[Handles] {
		if r.owner != nil && !r.owner.Opening {
			o.numbers[r.number] = r.owner.ID
		}
	}
	open, _ := t.sort()
	for _, owner := range open {
		o.known[owner.ID] = owner
	}
	sortByAge(open)
	return open, nil
}

func sortByAge(owners []Owner) {
	slices.SortFunc(owners, func(a, b Owner) int { return cmp.Compare(a.Opened, b.Opened) })
}

// Next waits for changes. If nothing has changed for a while it returns none.
func (o *Observer) Next() ([]Change, error) {
	if wait := time.Until(o.checked.Add(checkInterval)); wait <= 0 {
		o.checked = time.Now()
		if changes := o.dead(); len(changes) > 0 {
			return changes, nil
		}
	}
	if err := o.conn.SetReadDeadline(o.checked.Add(checkInterval)); err != nil {
		return nil, closed(err)
	}
	messages, err := o.conn.Receive()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, nil
	case errors.Is(err, unix.ENOBUFS):
		return o.catchUp()
	case err != nil:
		return nil, closed(err)
	}
	var changes []Change
	for _, m := range messages {
		changes = append(changes, o.message(m)...)
	}
	return changes, o.identify(changes)
}

// identify fills in the processes of handles that have been opened.
func (o *Observer) identify(changes []Change) error {
	var opened []*Owner
	for i := range changes {
		if !changes[i].Closed {
			opened = append(opened, &changes[i].Owner)
		}
	}
	if len(opened) == 0 {
		return nil
	}
	err := o.ns.Do(func() error { identify(opened); return nil })
	for i := range changes {
		c := &changes[i]
		if c.Closed {
			continue
		}
		if k, still := o.known[c.ID]; still {
			k.Process = c.Process
			o.known[c.ID] = k
			continue
		}
		for j := range changes[i:] { // closed already
			if later := &changes[i+j]; later.ID == c.ID {
				later.Process = c.Process
			}
		}
	}
	return err
}

// closed names the error of a closed connection.
func closed(err error) error {
	if errors.Is(err, unix.EBADF) || errors.Is(err, os.ErrClosed) {
		return os.ErrClosed
	}
	return err
}

// dead returns the handles whose process has ended without closing them, and removes their rules.
func (o *Observer) dead() (changes []Change) {
	_ = o.ns.Do(func() error {
		l := census()
		defer l.close()
		for id, owner := range o.known {
			if !l.alive(owner) {
				changes = append(changes, Change{owner, true})
				delete(o.known, id)
				o.buried[id] = true
			}
		}
		return nil
	})
	if len(changes) > 0 {
		_ = Sweep(o.ns) // if it fails, the next one to open or close a handle does it
	}
	return changes
}

// catchUp reads the table after messages were lost, once the socket is empty: until then it would lose more without an error.
func (o *Observer) catchUp() (changes []Change, err error) {
	if err := nfnl.Empty(o.conn); err != nil {
		return nil, closed(err)
	}
	before := o.known
	o.known = map[uint64]Owner{}
	o.forget()
	var open []Owner
	err = o.ns.Do(func() (err error) {
		open, err = o.read()
		return err
	})
	if err != nil {
		o.known = before
		return nil, err
	}
	for id, owner := range before {
		if _, still := o.known[id]; !still {
			changes = append(changes, Change{owner, true})
		}
	}
	for _, owner := range open {
		if _, had := before[owner.ID]; !had {
			changes = append(changes, Change{owner, false})
		}
	}
	return changes, nil
}

// message takes in a message of nftables (linux/netfilter/nf_tables.h). A transaction ends with the
// number of the new generation.
func (o *Observer) message(m netlink.Message) []Change {
	const subsystem = unix.NFNL_SUBSYS_NFTABLES << 8
	if len(m.Data) < nfgenmsgLen {
		return nil
	}
	attributes := nfnl.Attrs(m.Data[nfgenmsgLen:])
	switch m.Header.Type {
	case subsystem | unix.NFT_MSG_NEWRULE:
		if r, ok := o.registered(&m); ok {
			o.added(&r)
		}
	case subsystem | unix.NFT_MSG_DELRULE:
		if r, ok := o.registered(&m); ok {
			if id, ok := o.numbers[r.number]; ok {
				delete(o.numbers, r.number)
				o.gone[id] = true
			}
		}
	case subsystem | unix.NFT_MSG_NEWGEN:
		for attributes.Next() {
			if attributes.Type == unix.NFTA_GEN_ID && int32(attributes.Uint32()-o.seen) <= 0 {
				o.forget() // of before the table was read
				return nil
			}
		}
		return o.commit()
	}
	return nil
}

// registered returns the rule of a message if it is one of the registry: of the chain "handles", or a part of a filter.
func (o *Observer) registered(m *netlink.Message) (r rule, ok bool) {
	if m.Data[0] != unix.NFPROTO_INET {
		return r, false
	}
	table, chain, r := parseRule(nfnl.Attrs(m.Data[nfgenmsgLen:]))
	if table != tableName {
		return r, false
	}
	_, filter := filterChainOf(chain)
	return r, filter || chain == chains[Handles].name
}

// added takes in a new rule.
func (o *Observer) added(r *rule) {
	if p, ok := parseFilterPart(r.data); ok {
		f := o.filters[p.handle]
		f.add(p)
		o.filters[p.handle] = f
		return
	}
	if r.owner != nil && !r.owner.Opening {
		o.numbers[r.number] = r.owner.ID
		o.fresh[r.owner.ID] = *r.owner
	}
}

// commit returns the transaction's changes. A handle whose rules were exchanged stays open, or buried.
func (o *Observer) commit() (changes []Change) {
	for id := range o.gone {
		if _, again := o.fresh[id]; again {
			continue
		}
		delete(o.buried, id)
		if owner, known := o.known[id]; known {
			changes = append(changes, Change{owner, true})
			delete(o.known, id)
		}
	}
	for id, owner := range o.fresh {
		if _, known := o.known[id]; !known && !o.buried[id] {
			f := o.filters[id]
			owner.Filter = f.String()
			o.known[id] = owner
			changes = append(changes, Change{owner, false})
		}
	}
	for id, f := range o.filters {
		if owner, known := o.known[id]; known {
			owner.Filter = f.String()
			o.known[id] = owner
		}
	}
	o.forget()
	return changes
}

// forget ends a transaction.
func (o *Observer) forget() {
	clear(o.fresh)
	clear(o.gone)
	clear(o.filters)
}
