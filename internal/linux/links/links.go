//go:build linux

package links

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/prog"
)

// A name stands for the interface that has it, as its name or as an alternative one (altname, ip-link(8)); no two interfaces
// share a name. If the interface loses the name, the name stands for it until another interface takes the name: a handle on
// "eth0" keeps seeing that interface. If the interface is gone, the name stands for nothing until a new interface has it.

// Watch keeps the interfaces of a handle's filter known. Its methods may be called from several goroutines.
type Watch struct {
	events *netlink.Conn // tells of changes
	asked  *netlink.Conn // lists the interfaces
	stop   chan struct{}
	ended  sync.WaitGroup

	mu     sync.Mutex
	links  map[uint32]*Link  // all interfaces, by their indexes
	owners map[string]uint32 // their indexes, by all their names
	names  map[string]*name  // those of the filters that are followed
}

// Link is an interface.
type Link struct {
	Index        uint32
	Name         string
	Alternatives []string // the other names that it has
}

// name is a name that a filter has.
type name struct {
	index uint32        // of the interface that it stands for; 0: none
	sets  []*prog.Named // that have the index
}

// Open begins to watch the interfaces of the calling thread's network namespace. It needs no rights.
func Open() (*Watch, error) {
	w, err := open()
	if err == nil {
		w.ended.Go(w.listen)
	}
	return w, err
}

// open is Open without listening.
func open() (*Watch, error) {
	w := &Watch{stop: make(chan struct{}), names: map[string]*name{}}
	var err error
	if w.events, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return nil, failed(err)
	}
	if err = w.events.JoinGroup(unix.RTNLGRP_LINK); err == nil {
		w.asked, err = netlink.Dial(unix.NETLINK_ROUTE, nil)
	}
	if err != nil {
		w.events.Close()
		return nil, failed(err)
	}
	if err := w.list(); err != nil {
		return nil, errors.Join(failed(err), w.events.Close(), w.asked.Close())
	}
	return w, nil
}

func failed(err error) error {
	return fmt.Errorf("the interfaces that the filter names cannot be followed, compare ifIdx instead: %w", err)
}

// Follow fills the sets of the program's interfaces and keeps them current from now on.
func (w *Watch) Follow(p *prog.Program) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range p.Interfaces() {
		n := w.names[s.Name]
		if n == nil {
			n = &name{}
			w.names[s.Name] = n
		}
		n.sets = append(n.sets, s)
		if err := s.SetInterface(n.index); err != nil {
			return failed(err)
		}
	}
	if err := w.settle(); err != nil {
		return failed(err)
	}
	return nil
}

// Only stops following all programs but these, which it follows already.
func (w *Watch) Only(programs ...*prog.Program) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.names
	w.names = map[string]*name{}
	for _, p := range programs {
		for _, s := range p.Interfaces() {
			n := w.names[s.Name]
			if n == nil {
				n = &name{index: before[s.Name].index}
				w.names[s.Name] = n
			}
			n.sets = append(n.sets, s)
		}
	}
}

// Close ends the watch. The sets stay as they are.
func (w *Watch) Close() error {
	close(w.stop)
	err := w.events.Close()
	w.ended.Wait()
	return errors.Join(err, w.asked.Close())
}

// settle makes each name stand for its interface. w.mu is held.
func (w *Watch) settle() error {
	var errs []error
	for name, n := range w.names {
		index := w.owners[name]
		if _, there := w.links[n.index]; index == 0 && there {
			index = n.index // it has lost the name
		}
		if index == n.index {
			continue
		}
		n.index = index
		for _, s := range n.sets {
			errs = append(errs, s.SetInterface(index))
		}
	}
	return errors.Join(errs...)
}

// list asks for all interfaces.
func (w *Watch) list() error {
	all, err := dump(w.asked)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links, w.owners = map[uint32]*Link{}, map[string]uint32{}
	for _, m := range all {
		w.apply(m)
	}
	return w.settle()
}

// dump asks for messages about all interfaces.
func dump(c *netlink.Conn) ([]netlink.Message, error) {
	return c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, unix.SizeofIfInfomsg),
	})
}

// All returns the interfaces of the calling thread's network namespace, in the order of their indexes. It needs no rights.
func All() ([]*Link, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	messages, err := dump(c)
	if err != nil {
		return nil, err
	}
	var all []*Link
	for _, m := range messages {
		if l := linkOf(m.Data); l != nil {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b *Link) int { return cmp.Compare(a.Index, b.Index) })
	return all, nil
}

// Has reports whether the interface has a name, as its own or as an alternative.
func (l *Link) Has(name string) bool { return l.Name == name || slices.Contains(l.Alternatives, name) }

// names has all names of the interface.
func (l *Link) names() iter.Seq[string] {
	return func(yield func(string) bool) {
		if yield(l.Name) {
			slices.Values(l.Alternatives)(yield)
		}
	}
}

// apply takes over a message about an interface. w.mu is held.
func (w *Watch) apply(m netlink.Message) {
	l := linkOf(m.Data)
	switch {
	case l == nil:
	case m.Header.Type == unix.RTM_NEWLINK && l.Name != "":
		w.forget(l.Index)
		w.links[l.Index] = l
		for name := range l.names() {
			w.owners[name] = l.Index // also if another has had it: the kernel does not tell of alternative names of an interface that is down
		}
	case m.Header.Type == unix.RTM_DELLINK:
		w.forget(l.Index)
	}
}

// forget takes an interface out of the tables. w.mu is held.
func (w *Watch) forget(index uint32) {
	if l := w.links[index]; l != nil {
		delete(w.links, index)
		for name := range l.names() {
			if w.owners[name] == index {
				delete(w.owners, name)
			}
		}
	}
}

// linkOf reads the interface out of a message about one (rtnetlink(7)). It returns nil for other messages. A message with a
// family is about a bridge: it reports an interface that has left the bridge as if the interface were gone.
func linkOf(b []byte) *Link {
	const familyAt, indexAt = 0, 4
	if len(b) < unix.SizeofIfInfomsg || b[familyAt] != unix.AF_UNSPEC {
		return nil
	}
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return nil
	}
	l := &Link{Index: binary.NativeEndian.Uint32(b[indexAt:])}
	for d.Next() {
		switch d.Type() {
		case unix.IFLA_IFNAME:
			l.Name = d.String()
		case unix.IFLA_PROP_LIST:
			d.Nested(func(props *netlink.AttributeDecoder) error {
				for props.Next() {
					if props.Type() == unix.IFLA_ALT_IFNAME {
						l.Alternatives = append(l.Alternatives, props.String())
					}
				}
				return props.Err()
			})
		}
	}
	if d.Err() != nil || l.Index == 0 {
		return nil
	}
	return l
}

// retryAfter is how long the watch waits after an error before it lists the interfaces again.
const retryAfter = 200 * time.Millisecond

// drain empties the socket: a list that was made before could miss a change, see nfnl.Discard. The connection itself cannot read
// without waiting: with a deadline that has passed it does not read at all.
func (w *Watch) drain() error { return nfnl.Empty(w.events) }

// listen takes over the kernel's messages about interfaces, until Close. After an error, which says that messages were lost, all
// interfaces are listed again.
func (w *Watch) listen() {
	for {
		messages, err := w.events.Receive()
		if err == nil {
			w.mu.Lock()
			for _, m := range messages {
				w.apply(m)
			}
			err = w.settle()
			w.mu.Unlock()
		}
		for err != nil {
			select {
			case <-w.stop:
				return
			default:
			}
			if err = w.drain(); err == nil {
				err = w.list()
			}
			if err == nil {
				break
			}
			select {
			case <-w.stop:
				return
			case <-time.After(retryAfter):
			}
		}
	}
}
