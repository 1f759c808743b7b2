//go:build linux

package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/prog"
)

// A name stands for the interface that has it. One that is renamed keeps standing for the name, until another interface takes the
// name: whoever opened a handle on "eth0" goes on hearing of that interface. One that is gone stands for nothing, and when
// an interface of that name is made anew, it stands for that.

// Watch keeps the interfaces of a handle's filter known. Its methods may be called from several goroutines.
type Watch struct {
	events *netlink.Conn // tells of changes
	asked  *netlink.Conn // lists the interfaces
	stop   chan struct{}
	ended  sync.WaitGroup

	mu    sync.Mutex
	links map[uint32]string // the names of all interfaces, by their indexes
	names map[string]*name  // those of the filters that are followed
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

// Only ends following all programs but one.
func (w *Watch) Only(p *prog.Program) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.names
	w.names = map[string]*name{}
	for _, s := range p.Interfaces() {
		if n := before[s.Name]; n != nil {
			w.names[s.Name] = &name{n.index, []*prog.Named{s}}
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
	if len(w.names) == 0 {
		return nil
	}
	owners := make(map[string]uint32, len(w.names))
	for index, name := range w.links {
		if w.names[name] != nil {
			owners[name] = index
		}
	}
	var errs []error
	for name, n := range w.names {
		index := owners[name]
		if _, there := w.links[n.index]; index == 0 && there {
			index = n.index // it has another name now
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
	all, err := w.asked.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, unix.SizeofIfInfomsg),
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links = map[uint32]string{}
	for _, m := range all {
		w.apply(m)
	}
	return w.settle()
}

// apply takes over a message about an interface. w.mu is held.
func (w *Watch) apply(m netlink.Message) {
	index, name, ok := linkOf(m.Data)
	switch {
	case !ok:
	case m.Header.Type == unix.RTM_NEWLINK && name != "":
		w.links[index] = name
	case m.Header.Type == unix.RTM_DELLINK:
		delete(w.links, index)
	}
}

// linkOf reads the index and the name out of a message about an interface (rtnetlink(7)). It is not ok for other messages. Those
// of a family are about a bridge, and say that an interface has left it as if the interface were gone.
func linkOf(b []byte) (index uint32, name string, ok bool) {
	const familyAt, indexAt = 0, 4
	if len(b) < unix.SizeofIfInfomsg || b[familyAt] != unix.AF_UNSPEC {
		return 0, "", false
	}
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return 0, "", false
	}
	for d.Next() {
		if d.Type() == unix.IFLA_IFNAME {
			name = d.String()
		}
	}
	index = binary.NativeEndian.Uint32(b[indexAt:])
	return index, name, d.Err() == nil && index != 0
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
