//go:build linux

package rules

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/netns"
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
	checked time.Time
}

// checkInterval is how often an observer looks whether processes have died.
const checkInterval = 200 * time.Millisecond

// Observe begins to follow the handles of a namespace, which must outlive the observer. It returns those
// that are open, the oldest first.
func Observe(ns *netns.Namespace) (*Observer, []Owner, error) {
	o := &Observer{
		ns: ns, known: map[uint64]Owner{}, numbers: map[uint64]uint64{},
		filters: map[uint64]filterText{}, fresh: map[uint64]Owner{}, gone: map[uint64]bool{},
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

// read makes what stands in the table what is known, and returns the living handles, the oldest first.
func (o *Observer) read() ([]Owner, error) {
	t, err := readLocked()
	if err != nil {
		return nil, err
	}
	clear(o.known)
	clear(o.numbers)
	for _, r := range t.rules[Handles] {
		if owner, ok := parseOwner(r.UserData); ok {
			if _, _, _, part := filterPart(r.UserData); !part {
				o.numbers[r.Handle] = owner.ID
			}
		}
	}
	filters := t.filters()
	var open []Owner
	for _, owner := range t.owners() {
		if owner.alive() {
			owner.Filter = filters[owner.ID]
			o.known[owner.ID] = owner
			open = append(open, owner)
		}
	}
	sortByAge(open)
	return open, nil
}

func sortByAge(owners []Owner) {
	slices.SortFunc(owners, func(a, b Owner) int { return cmp.Compare(a.Opened, b.Opened) })
}

// Next waits for changes, until the deadline of nothing having changed for a while: then it returns none.
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
	return changes, nil
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
		for id, owner := range o.known {
			if !owner.alive() {
				changes = append(changes, Change{owner, true})
				delete(o.known, id)
			}
		}
		return nil
	})
	if len(changes) > 0 {
		_ = Sweep(o.ns) // if it fails, the next one to open or close a handle does it
	}
	return changes
}

// catchUp reads the table after messages were lost.
func (o *Observer) catchUp() (changes []Change, err error) {
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
	switch m.Header.Type {
	case subsystem | unix.NFT_MSG_NEWRULE:
		if r, ok := parseRule(m.Data); ok {
			o.added(&r)
		}
	case subsystem | unix.NFT_MSG_DELRULE:
		if r, ok := parseRule(m.Data); ok {
			if id, ok := o.numbers[r.number]; ok {
				delete(o.numbers, r.number)
				o.gone[id] = true
			}
		}
	case subsystem | unix.NFT_MSG_NEWGEN:
		return o.commit()
	}
	return nil
}

// observedRule is a rule of the chain "handles" in a message.
type observedRule struct {
	number   uint64
	userData []byte
}

// parseRule reads a rule, if it is one of the chain "handles".
func parseRule(data []byte) (r observedRule, ok bool) {
	const nfgenmsg = 4
	if len(data) < nfgenmsg || data[0] != unix.NFPROTO_INET {
		return r, false
	}
	attributes, err := netlink.UnmarshalAttributes(data[nfgenmsg:])
	if err != nil {
		return r, false
	}
	var inTable, inChain bool
	for _, a := range attributes {
		switch a.Type {
		case unix.NFTA_RULE_TABLE:
			inTable = string(bytes.TrimRight(a.Data, "\x00")) == tableName
		case unix.NFTA_RULE_CHAIN:
			inChain = string(bytes.TrimRight(a.Data, "\x00")) == chains[Handles].name
		case unix.NFTA_RULE_HANDLE:
			if len(a.Data) == 8 {
				r.number = binary.BigEndian.Uint64(a.Data)
			}
		case unix.NFTA_RULE_USERDATA:
			r.userData = a.Data
		}
	}
	return r, inTable && inChain
}

// added takes in a new rule.
func (o *Observer) added(r *observedRule) {
	owner, ok := parseOwner(r.userData)
	if !ok {
		return
	}
	if index, count, text, ok := filterPart(r.userData); ok {
		f := o.filters[owner.ID]
		f.add(index, count, text)
		o.filters[owner.ID] = f
		return
	}
	o.numbers[r.number] = owner.ID
	o.fresh[owner.ID] = owner
}

// commit returns what the transaction has changed. A handle whose rules were exchanged stays open.
func (o *Observer) commit() (changes []Change) {
	for id := range o.gone {
		owner, known := o.known[id]
		if _, again := o.fresh[id]; known && !again {
			changes = append(changes, Change{owner, true})
			delete(o.known, id)
		}
	}
	for id, owner := range o.fresh {
		if _, known := o.known[id]; !known {
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
