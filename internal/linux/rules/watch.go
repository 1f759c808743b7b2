//go:build linux

package rules

import (
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/netns"
)

// A process that has a handle open watches the table of the handle's namespace. It does two things.
//
// It tells a handle that another program has removed its rules: such a handle gets no packets any more, and a receive call would
// wait for ever.
//
// And it takes away the rules of other processes' handles that have died. Those with a filter program match nothing once their
// process has ended. But a rule without a program goes on leading packets to a queue that nobody has bound; the kernel then lets
// them pass, and past the rest of the chain, so that the handles below do not see them until the rule is gone.

// The watch sleeps until the kernel tells of a change of rules, or that another process with a handle has ended.

// watchInterval is the least time between two looks, and the time between looks without news: at the table, if the watch hears
// nothing of changes; at the kernel's list of queues, if there are handles whose process it cannot find.
const watchInterval = 200 * time.Millisecond

// Guard watches an entry, and calls back when the entry's rules are gone.
type Guard struct {
	entry *Entry
	gone  func()
	watch *watch
}

// watch is the watch of a namespace.
type watch struct {
	ns     *netns.Namespace
	events *netlink.Conn // nil: there is none, so the table is read at every look
	wake   chan struct{} // there is something to look at
	stop   chan struct{}
	ended  sync.WaitGroup
	users  int // guards that are not closed; under the lock of watches

	// Those of run's goroutine.
	foreign []Owner             // the handles that this watch does not guard, as read last
	waiting map[uint64]*os.File // pidfds that are waited for, of the processes of foreign handles by these handles' ids
	unheard bool                // for some foreign handle there is none

	changed atomic.Bool // rules have changed since the table was read
	over    atomic.Bool // a process that was waited for has ended

	mu     sync.Mutex
	guards map[uint64]*Guard // by the handle's id
}

// watches are those of this process, by the namespace's number.
var watches = struct {
	sync.Mutex
	of map[uint64]*watch
}{of: map[uint64]*watch{}}

// Guard begins to watch over an entry; gone is called once, on a goroutine of its own, when another program has removed any of
// its rules. Close the guard before the entry's rules are removed.
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
	w.change() // the changes since the entry was made
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
	w := &watch{stop: make(chan struct{}), wake: make(chan struct{}, 1), waiting: map[uint64]*os.File{}, guards: map[uint64]*Guard{}}
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

// change notes that rules have changed.
func (w *watch) change() {
	w.changed.Store(true)
	w.ring()
}

// ring makes the watch look.
func (w *watch) ring() {
	select {
	case w.wake <- struct{}{}:
	default: // it will
	}
}

// listen notes that rules have changed. The contents of messages do not matter, so lost ones do not either.
func (w *watch) listen() {
	for {
		_, err := w.events.Receive()
		w.change()
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
	defer w.waitFor(nil)
	again := false // something is to be done once more
	for {
		var later <-chan time.Time
		if again || w.events == nil || w.unheard {
			later = time.After(watchInterval)
		}
		select {
		case <-w.stop:
			return
		case <-later:
		case <-w.wake:
			select { // changes that come now are seen with it
			case <-w.stop:
				return
			case <-time.After(watchInterval):
			}
		}
		again = false
		if w.events == nil || w.changed.Swap(false) {
			if w.look() != nil {
				w.changed.Store(true) // others change rules all the time, or memory is short
				again = true
			}
		}
		over := w.over.Swap(false)
		if len(w.foreign) == 0 {
			continue
		}
		if w.dead() {
			again = Sweep(w.ns) != nil
			w.change()
		} else if over {
			w.unheard = true // another process has its sockets
		}
	}
}

// waitFor makes the watch look when the process of one of the handles ends, and only of those, as far as it can find them.
// It runs on a thread of the namespace.
func (w *watch) waitFor(owners []Owner) {
	for id, f := range w.waiting {
		if !slices.ContainsFunc(owners, func(o Owner) bool { return o.ID == id }) {
			f.Close()
			delete(w.waiting, id)
		}
	}
	w.unheard = false
	var ports map[uint32]uint64
	for _, o := range owners {
		if w.waiting[o.ID] != nil || own.has(ownHandle{o.ID, o.Port}) {
			continue
		}
		if ports == nil && ownProc() {
			ports, _ = inodes()
		}
		f := processOf(o, ports)
		if f == nil {
			w.unheard = true
			continue
		}
		w.waiting[o.ID] = f
		w.ended.Go(func() {
			if untilEnd(f) == nil {
				w.over.Store(true)
				w.ring()
			}
		})
	}
}

// processOf returns a pidfd of the process that has a handle's token, nil if it is not where the handle says.
func processOf(o Owner, ports map[uint32]uint64) *os.File {
	inode, ok := ports[o.Port]
	if !ok {
		return nil
	}
	fd, err := unix.PidfdOpen(o.PID, 0)
	if err != nil {
		return nil
	}
	// Open before the look at its descriptors: it is the process that is looked at, or one that has ended.
	found, err := holds(strconv.Itoa(o.PID), map[uint64]bool{inode: true})
	if err != nil || !found || unix.SetNonblock(fd, true) != nil {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// untilEnd waits until the process of a pidfd has ended, and fails if the descriptor is closed before.
func untilEnd(pidfd *os.File) error {
	c, err := pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return c.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
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
		for _, o := range t.owners() {
			if w.guards[o.ID] == nil {
				w.foreign = append(w.foreign, o)
			}
		}
		w.mu.Unlock()
		w.waitFor(w.foreign)
		return nil
	})
}

// lookFor reads the table and returns the guards whose handles have fewer rules there than were made. Both counts are of one
// moment: handles may be changing their rules, which they do under the mutex.
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
