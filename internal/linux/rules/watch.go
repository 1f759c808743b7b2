//go:build linux

package rules

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/netns"
)

// A process that has a handle open watches the table of the handle's namespace. It does two things.
//
// It tells a handle that another program has removed its rules: such a handle gets no packets any more,
// and whoever receives from it would wait for ever.
//
// And it takes away the rules of other processes' handles that have died. Those with a filter program
// match nothing from their process's end on. But a rule without a program goes on leading packets to a
// queue that nobody has bound; the kernel then lets them pass, and past the rest of the chain, so that the
// handles below do not see them until the rule is gone.

// watchInterval is how often the watch looks: the time that lower handles miss packets after a process with a
// rule without a program has died, and that passes until a handle learns of its lost rules. A look reads the kernel's
// list of queues if there are handles of other processes, and the table only after a change.
const watchInterval = 200 * time.Millisecond

// Guard is what stands between an entry and silence: it calls back when the entry's rules are gone.
type Guard struct {
	entry *Entry
	gone  func()
	watch *watch
}

// watch is the watch of a namespace.
type watch struct {
	ns      *netns.Namespace
	events  *netlink.Conn // nil: not to be had, so the table is read at every look
	changed atomic.Bool
	stop    chan struct{}
	ended   sync.WaitGroup
	foreign []Owner // the handles that this watch does not guard, as read last
	users   int     // guards that are not closed; under the lock of watches

	mu     sync.Mutex
	guards map[uint64]*Guard // by the handle's id
}

// watches are this process's, by the namespace's number.
var watches = struct {
	sync.Mutex
	of map[uint64]*watch
}{of: map[uint64]*watch{}}

// Guard begins to watch over an entry; gone is called once, on a goroutine of its own, when another program
// has removed rules of it. Close the guard before the entry's rules are taken away.
func (e *Entry) Guard(gone func()) (*Guard, error) {
	watches.Lock()
	defer watches.Unlock()
	w := watches.of[e.ns.Inode()]
	if w == nil {
		var err error
		if w, err = newWatch(e.ns); err != nil {
			return nil, err
		}
		watches.of[e.ns.Inode()] = w
	}
	w.users++
	g := &Guard{entry: e, gone: gone, watch: w}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.guards[e.ID] = g
	w.changed.Store(true) // what happened since the entry was made
	return g, nil
}

// Close ends the guard. When it was the last of its namespace, the watch has ended too.
func (g *Guard) Close() {
	watches.Lock()
	defer watches.Unlock()
	w := g.watch
	w.mu.Lock()
	if w.guards[g.entry.ID] == g {
		delete(w.guards, g.entry.ID)
	}
	w.mu.Unlock()
	if w.users--; w.users == 0 {
		delete(watches.of, g.entry.ns.Inode())
		w.close()
	}
}

// newWatch begins to watch a namespace.
func newWatch(ns *netns.Namespace) (*watch, error) {
	w := &watch{stop: make(chan struct{}), guards: map[uint64]*Guard{}}
	err := ns.Do(func() (err error) {
		// Its own hold of the namespace: the handle's ends with the handle.
		if w.ns, err = netns.Current(); err != nil {
			return err
		}
		if w.events, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
			w.events = nil
			return nil
		}
		if w.events.JoinGroup(unix.NFNLGRP_NFTABLES) != nil {
			w.events.Close()
			w.events = nil
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if w.events != nil {
		w.ended.Go(w.listen)
	}
	w.ended.Go(w.run)
	return w, nil
}

// close ends the watch.
func (w *watch) close() {
	close(w.stop)
	if w.events != nil {
		w.events.Close()
	}
	w.ended.Wait()
	w.ns.Close()
}

// listen notes that rules have changed. What a message says does not matter, so neither does a lost one.
func (w *watch) listen() {
	for {
		_, err := w.events.Receive()
		w.changed.Store(true)
		if err == nil {
			continue
		}
		select {
		case <-w.stop:
			return
		case <-time.After(watchInterval): // too many messages at once, most likely
		}
	}
}

// run looks at the table until close.
func (w *watch) run() {
	for {
		select {
		case <-w.stop:
			return
		case <-time.After(watchInterval):
		}
		if w.events == nil || w.changed.Swap(false) {
			if w.look() != nil {
				w.changed.Store(true) // others change rules all the time, or memory is short: again next time
			}
		}
		if len(w.foreign) > 0 && w.dead() {
			_ = Sweep(w.ns) // if it fails, the next look finds the dead one again
			w.changed.Store(true)
		}
	}
}

// dead reports whether the process of another handle has ended.
func (w *watch) dead() (dead bool) {
	_ = w.ns.Do(func() error {
		l := census()
		defer l.close()
		dead = slices.ContainsFunc(w.foreign, func(o Owner) bool { return !l.alive(o) })
		return nil
	})
	return dead
}

// look reads the table: whose rules are gone, and which other handles there are.
func (w *watch) look() error {
	return w.ns.Do(func() error {
		w.mu.Lock()
		guarded := make([]*Guard, 0, len(w.guards))
		for _, g := range w.guards {
			guarded = append(guarded, g)
		}
		w.mu.Unlock()
		t, missing, err := lookFor(w.ns, guarded)
		if err != nil {
			return err
		}
		for _, g := range missing {
			w.tell(g)
		}
		w.foreign = w.foreign[:0]
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, o := range t.owners() {
			if w.guards[o.ID] == nil {
				w.foreign = append(w.foreign, o)
			}
		}
		return nil
	})
}

// lookFor reads the table and returns the guards of whose handles fewer rules are there than were made. Both counts
// are of one moment: handles may be changing their rules, which they do under the mutex.
func lookFor(ns *netns.Namespace, guarded []*Guard) (t *tx, missing []*Guard, err error) {
	mu := mutexOf(ns)
	mu.Lock()
	defer mu.Unlock()
	if t, err = read(); err != nil {
		return nil, nil, err
	}
	err = t.load()
	t.conn.Close()
	if err != nil {
		return nil, nil, err
	}
	there := t.counts()
	for _, g := range guarded {
		if there[g.entry.ID] < int(g.entry.rules.Load()) {
			missing = append(missing, g)
		}
	}
	return t, missing, nil
}

// counts returns how many rules each handle has.
func (t *tx) counts() map[uint64]int {
	n := map[uint64]int{}
	for _, rules := range t.rules {
		for _, r := range rules {
			if r.owner != nil {
				n[r.owner.ID]++
			}
		}
	}
	return n
}

// tell tells a guard's owner that rules are gone, unless the guard has been closed meanwhile.
func (w *watch) tell(g *Guard) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.guards[g.entry.ID] == g {
		delete(w.guards, g.entry.ID)
		go g.gone()
	}
}
