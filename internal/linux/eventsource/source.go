//go:build linux

package eventsource

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/internal/linux/eventprog"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/prog"
)

// Config has a handle's demands on the kernel.
type Config struct {
	Filter *prog.Program // of LayerSocket or LayerFlow
	Flags  uint64        // of the handle
	Key    cursor.Key    // its place among the handles of the namespace
	Cgroup *os.File      // directory of the cgroup to attach to, see cgroup.Open
	Events int           // records for which the ring has room at least
}

// Source is a handle's part in the kernel. Its methods may be called from several goroutines, Read
// from one.
type Source struct {
	cfg      eventprog.Config // of the filter in force
	name     string           // of its programs
	programs []eventprog.Program
	cgroup   *os.File
	maps     eventmap.Maps
	ring     *ringbuf.Reader
	record   ringbuf.Record

	mu     sync.Mutex
	links  map[string]link.Link // by the names of hooks
	loaded []*ebpf.Program      // the attached programs; nil where nothing is attached
	swaps  int                  // filters so far, with those that failed
	listen link.Link            // refuses LISTEN before it happens; nil: nothing does

	key       cursor.Key
	unordered bool // a program stands behind those of handles of lower priority
}

// Open loads the programs of a handle and attaches them. From its return on events are recorded. The calling
// thread is in the network namespace of the handle. The cgroup belongs to the caller, and must stay open.
func Open(cfg Config) (*Source, error) {
	s := &Source{
		cfg: eventprog.Config{Flags: cfg.Flags}, name: cgroup.ProgramName(cfg.Key), key: cfg.Key,
		programs: eventprog.Programs(cfg.Filter.Layer()), cgroup: cfg.Cgroup, links: map[string]link.Link{},
	}
	if err := s.open(&cfg); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Source) open(cfg *Config) (err error) {
	if s.cfg.Cookie, err = netns.Cookie(); err != nil {
		return err
	}
	if s.cfg.Inode, err = netns.CurrentInode(); err != nil {
		return err
	}
	if s.maps, err = eventmap.Open(cfg.Events, eventmap.Room()); err != nil {
		return err
	}
	if s.ring, err = ringbuf.NewReader(s.maps[eventmap.RingMap]); err != nil {
		return err
	}
	if err := s.SetFilter(cfg.Filter); err != nil {
		return err
	}
	return s.maps.Adopt() // the programs have seen those made meanwhile
}

// SetFilter replaces the filter. Each operation meets the programs of the old one or those of the new one. If it fails,
// the old one is in force at every hook.
func (s *Source) SetFilter(p *prog.Program) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := s.cfg
	cfg.Filter = p
	if s.swaps++; s.swaps <= math.MaxUint16 {
		cfg.Generation = uint16(s.swaps)
	} else {
		cfg.Generation = 0
	}
	programs := make([]*ebpf.Program, len(s.programs))
	var listen *ebpf.Program
	defer func() {
		if listen != nil {
			listen.Close() // the link keeps it
		}
		closeAll(programs) // those that are not in force
	}()
	for i := range s.programs {
		if programs[i], err = s.programs[i].Load(s.name, &cfg, s.maps); err != nil {
			return fmt.Errorf("program %s: %w", s.programs[i].Name, err)
		}
	}
	if listen, err = eventprog.LoadListen(s.name, &cfg, s.maps); err != nil {
		return fmt.Errorf("program %s: %w", eventprog.Listen.Name, err)
	}
	if err = s.attach(programs); err == nil {
		err = s.maps.ForgetPeers()
	}
	if err != nil {
		return errors.Join(err, s.restore(programs))
	}
	s.cfg, s.loaded, programs = cfg, programs, s.loaded
	return errors.Join(s.detachOthers(), s.exchangeListen(listen))
}

// Steps of SetFilter that the kernel may refuse. Tests make them fail.
var (
	updateLink = func(l link.Link, p *ebpf.Program) error { return l.Update(p) }
	attachNew  = cgroup.Attach
)

// attach attaches programs in place of the attached ones. Where there is no new program, the old one
// stays.
func (s *Source) attach(programs []*ebpf.Program) error {
	for i, p := range programs {
		h := &s.programs[i]
		old, attached := s.links[h.Name]
		var err error
		switch {
		case p != nil && attached:
			err = updateLink(old, p)
		case p != nil:
			var l link.Link
			var ordered bool
			if l, ordered, err = attachNew(s.cgroup, h.Attach, p, s.key); err == nil {
				s.links[h.Name] = l
				s.unordered = s.unordered || !ordered
			}
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", h.Name, err)
		}
	}
	return nil
}

// restore undoes attach, also where it has failed half-way.
func (s *Source) restore(programs []*ebpf.Program) error {
	var errs []error
	for i := range programs {
		name := s.programs[i].Name
		l, attached := s.links[name]
		switch {
		case programs[i] == nil || !attached:
		case s.loaded == nil || s.loaded[i] == nil:
			delete(s.links, name)
			errs = append(errs, l.Close())
		default:
			if err := updateLink(l, s.loaded[i]); err != nil {
				errs = append(errs, fmt.Errorf("the filter before is not in force everywhere, close the handle: attach %s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// detachOthers detaches programs where the filter in force has none.
func (s *Source) detachOthers() error {
	var errs []error
	for i, p := range s.loaded {
		name := s.programs[i].Name
		if l, attached := s.links[name]; attached && p == nil {
			delete(s.links, name)
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// Detach takes the programs away. Their records can still be read.
func (s *Source) Detach() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name, l := range s.links {
		errs = append(errs, l.Close())
		delete(s.links, name)
	}
	closeAll(s.loaded)
	s.loaded = nil
	if s.listen != nil {
		errs = append(errs, s.listen.Close())
		s.listen = nil
	}
	return errors.Join(errs...)
}

// Close takes the programs away and ends Read with os.ErrClosed.
func (s *Source) Close() error {
	errs := []error{s.Detach()}
	if s.ring != nil {
		errs = append(errs, s.ring.Close())
	}
	return errors.Join(append(errs, s.maps.Close())...)
}

// Counts returns the counters that the programs keep.
func (s *Source) Counts() (eventmap.Counts, error) { return s.maps.Counts() }

// LastSeen returns when the last packet of a flow without connection was seen, and whether the kernel still
// remembers.
func (s *Source) LastSeen(r *eventmap.Record) (at int64, ok bool) { return s.maps.LastSeen(r) }

// Forget makes the kernel report a flow without connection again when its next packet comes.
func (s *Source) Forget(r *eventmap.Record) { s.maps.Forget(r) }

// SetReadDeadline makes Read fail with os.ErrDeadlineExceeded from t on.
func (s *Source) SetReadDeadline(t time.Time) { s.ring.SetDeadline(t) }

// Read waits for a record. It fails with os.ErrClosed after Close.
func (s *Source) Read(r *eventmap.Record) error {
	for {
		if err := s.ring.ReadInto(&s.record); err != nil {
			return err
		}
		if r.Parse(s.record.RawSample) {
			return nil
		}
	}
}

// Flush makes Read fail with ringbuf.ErrFlushed when it has returned the records that are there.
func (s *Source) Flush() { _ = s.ring.Flush() } // fails when closed, which ends Read too

func closeAll(programs []*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

// exchangeListen attaches a program that refuses LISTEN in the place of the attached one; p may be nil, and a kernel that
// attaches none is no error. In between, LISTEN is refused late.
func (s *Source) exchangeListen(p *ebpf.Program) (err error) {
	if s.listen != nil {
		err = s.listen.Close()
		s.listen = nil
	}
	if p == nil {
		return err
	}
	if l, failed := link.AttachTracing(link.TracingOptions{Program: p, AttachType: ebpf.AttachModifyReturn}); failed == nil {
		s.listen = l // else there are 38 already, or the kernel has no trampolines
	}
	return err
}
