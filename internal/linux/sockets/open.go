//go:build linux

package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"os"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Config says what a handle wants of the kernel.
type Config struct {
	Filter *prog.Program // of LayerSocket or LayerFlow
	Flags  uint64        // of the handle
	Key    cursor.Key    // its place among the handles of the namespace
	Cookie uint64        // of the network namespace, see Cookie
	Cgroup *os.File      // directory of the cgroup to attach to, see OpenCgroup
	Events int           // records for which the ring has room at least

	inode      uint32 // of the network namespace
	generation uint16 // counts the filters; 0 when there were too many to count
}

// Source is what a handle has in the kernel. Its methods may be called from several goroutines, Read
// from one.
type Source struct {
	cfg    Config
	hooks  []hook
	cgroup *os.File
	maps   map[string]*ebpf.Map
	ring   *ringbuf.Reader
	record ringbuf.Record

	mu     sync.Mutex
	links  map[string]link.Link // by the names of hooks
	loaded []*ebpf.Program      // what they attach, by hook; nil where nothing is attached
	swaps  int                  // filters that there were, with those that failed
	listen link.Link            // refuses LISTEN before it happens; nil: nothing does

	unordered bool // a program stands behind those of handles of lower priority
}

// Cookie returns the cookie of the calling thread's network namespace.
func Cookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return cookie, os.NewSyscallError("getsockopt SO_NETNS_COOKIE", err)
}

// Open loads the programs of a handle and attaches them. From its return on events are recorded. The calling
// thread is in the network namespace of the handle. The cgroup belongs to the caller, and must stay open.
func Open(cfg Config) (*Source, error) {
	s := &Source{cfg: cfg, hooks: socketHooks, cgroup: cfg.Cgroup, links: map[string]link.Link{}}
	if cfg.Filter.Layer() == packet.LayerFlow {
		s.hooks = flowHooks
	}
	var err error
	if s.cfg.inode, err = namespaceInode(); err != nil {
		return nil, err
	}
	if s.maps, err = openMaps(ringSize(cfg.Events), olderRoom()); err == nil {
		if s.ring, err = ringbuf.NewReader(s.maps[ringMap]); err == nil {
			if err = s.SetFilter(cfg.Filter); err == nil {
				err = s.adoptOlder() // those made meanwhile the programs have seen
			}
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// ringSize returns the size of a ring for so many records: a power of two.
func ringSize(events int) uint32 {
	const perRecord = codegen.EventSize + 8
	size := uint64(max(events*perRecord, minRingSize))
	return uint32(1) << bits.Len64(size-1)
}

// minRingSize is 13,000 records: what comes while user space is not scheduled.
const minRingSize = 1 << 20

// SetFilter replaces the filter. Each operation meets the programs of the old one or those of the new one. If it fails,
// the old one is in force at every hook.
func (s *Source) SetFilter(p *prog.Program) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	cfg := s.cfg
	cfg.Filter = p
	if s.swaps++; s.swaps <= math.MaxUint16 {
		cfg.generation = uint16(s.swaps)
	} else {
		cfg.generation = 0
	}
	programs := make([]*ebpf.Program, len(s.hooks))
	var listen *ebpf.Program
	defer func() {
		if listen != nil {
			listen.Close() // the link keeps it
		}
		closePrograms(programs) // those that are not in force
	}()
	for i := range s.hooks {
		if programs[i], err = load(&s.hooks[i], &cfg, s.maps); err != nil {
			return fmt.Errorf("program %s: %w", s.hooks[i].name, err)
		}
	}
	if listen, err = loadListen(&cfg, s.maps); err != nil {
		return fmt.Errorf("program %s: %w", listenHook.name, err)
	}
	if err = s.attach(programs); err == nil {
		err = s.forgetPeers()
	}
	if err != nil {
		return errors.Join(err, s.restore(programs))
	}
	s.cfg, s.loaded, programs = cfg, programs, s.loaded
	return errors.Join(s.detachOthers(), s.exchangeListen(listen))
}

// forgetPeers makes the programs decide anew on the peers that they have let pass.
func (s *Source) forgetPeers() error {
	var key, value [peerKeySize]byte
	var keys [][peerKeySize]byte
	all := s.maps[peersMap].Iterate()
	for v := value[:8]; all.Next(&key, &v); {
		keys = append(keys, key)
	}
	for _, k := range keys {
		if err := s.maps[peersMap].Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil // what has been added or evicted meanwhile met one of the filters
}

// Steps of SetFilter that the kernel may refuse. Tests make them fail.
var (
	updateLink = func(l link.Link, p *ebpf.Program) error { return l.Update(p) }
	attachNew  = attach
)

// attach attaches programs, in the place of those that are attached. What is attached where there is no new program
// stays.
func (s *Source) attach(programs []*ebpf.Program) error {
	for i, p := range programs {
		h := &s.hooks[i]
		old, attached := s.links[h.name]
		var err error
		switch {
		case p != nil && attached:
			err = updateLink(old, p)
		case p != nil:
			var l link.Link
			var ordered bool
			if l, ordered, err = attachNew(s.cgroup, h.attach, p, s.cfg.Key); err == nil {
				s.links[h.name] = l
				s.unordered = s.unordered || !ordered
			}
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", h.name, err)
		}
	}
	return nil
}

// restore undoes attach, also where it has failed half-way.
func (s *Source) restore(programs []*ebpf.Program) error {
	var errs []error
	for i := range programs {
		name := s.hooks[i].name
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

// detachOthers takes away what is attached where the filter in force has no program.
func (s *Source) detachOthers() error {
	var errs []error
	for i, p := range s.loaded {
		name := s.hooks[i].name
		if l, attached := s.links[name]; attached && p == nil {
			delete(s.links, name)
			errs = append(errs, l.Close())
		}
	}
	return errors.Join(errs...)
}

// Detach takes the programs away. What they have recorded can still be read.
func (s *Source) Detach() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name, l := range s.links {
		errs = append(errs, l.Close())
		delete(s.links, name)
	}
	closePrograms(s.loaded)
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
	return errors.Join(append(errs, closeMaps(s.maps))...)
}

// Counts are the counters that the programs keep.
type Counts struct {
	Lost    uint64 // records for which the ring had no room
	Dropped uint64 // operations refused without a record
}

// Counts returns the counters.
func (s *Source) Counts() (Counts, error) {
	var v [countersSize]byte
	if err := s.maps[countersMap].Lookup(uint32(0), &v); err != nil {
		return Counts{}, err
	}
	return Counts{
		Lost:    binary.NativeEndian.Uint64(v[counterLost:]),
		Dropped: binary.NativeEndian.Uint64(v[counterDropped:]),
	}, nil
}

// SetReadDeadline makes Read fail with os.ErrDeadlineExceeded from t on.
func (s *Source) SetReadDeadline(t time.Time) { s.ring.SetDeadline(t) }

// Read waits for a record. It fails with os.ErrClosed after Close.
func (s *Source) Read(r *Record) error {
	for {
		if err := s.ring.ReadInto(&s.record); err != nil {
			return err
		}
		if r.parse(s.record.RawSample) {
			return nil
		}
	}
}

// Flush makes Read fail with ringbuf.ErrFlushed when it has returned what is there.
func (s *Source) Flush() { _ = s.ring.Flush() } // fails when closed, which ends Read too
