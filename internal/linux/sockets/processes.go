//go:build linux

package sockets

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// listenerMap is the storage with the process of a listener, which its children inherit.
const listenerMap = "divert_listener"

func listenerSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: listenerMap, Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: flagNoPrealloc | flagClone,
		Key: &btf.Int{Name: "unsigned int", Size: 4}, Value: &btf.Int{Name: "unsigned long", Size: 8},
	}
}

// Processes knows the processes of the sockets of a network namespace, as long as it is open. All handles of this
// process in the namespace share it.
type Processes struct {
	maps  *codegen.Processes
	links []link.Link
	users int
	space uint64 // cookie of the namespace

	whole  bool   // the programs are attached to the root of the hierarchy, so that every process is seen
	cgroup string // where else
}

// shared are the Processes that are open, by namespace.
var shared struct {
	sync.Mutex
	spaces map[uint64]*Processes
}

// OpenProcesses makes the processes of the sockets of the calling thread's namespace known, of those that are there
// already too.
func OpenProcesses() (*Processes, error) {
	space, err := Cookie()
	if err != nil {
		return nil, err
	}
	shared.Lock()
	defer shared.Unlock()
	if ps := shared.spaces[space]; ps != nil {
		ps.users++
		return ps, nil
	}
	ps := &Processes{users: 1, space: space}
	if err := ps.open(); err != nil {
		ps.release()
		return nil, err
	}
	if shared.spaces == nil {
		shared.spaces = map[uint64]*Processes{}
	}
	shared.spaces[space] = ps
	return ps, nil
}

// open attaches the programs and then enters the sockets that are older: those made meanwhile the programs
// have seen.
func (ps *Processes) open() error {
	cgroup, err := OpenCgroup()
	if err != nil {
		return err
	}
	defer cgroup.Dir.Close() // the links keep the cgroup
	ps.whole, ps.cgroup = cgroup.Whole, cgroup.Path
	if ps.maps, err = codegen.NewProcesses(); err != nil {
		return err
	}
	programs, err := loadProcessPrograms(ps.space, ps.maps)
	defer closePrograms(programs) // the links keep them
	if err != nil {
		return err
	}
	for i, p := range programs {
		h := &processHooks[i]
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cgroup.Dir.Fd()), Program: p, Attach: h.attach})
		if err != nil {
			return fmt.Errorf("attach %s: %w", h.name, err)
		}
		ps.links = append(ps.links, l)
	}
	return ps.adoptOlder()
}

// loadProcessPrograms loads the programs of processHooks. With an error come those that were loaded.
func loadProcessPrograms(space uint64, ps *codegen.Processes) (programs []*ebpf.Program, err error) {
	listener, err := ebpf.NewMap(listenerSpec())
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", listenerMap, err)
	}
	defer listener.Close() // the programs keep it
	for i := range processHooks {
		h := &processHooks[i]
		b := &processBuilder{namespace: space}
		h.build(b)
		p, err := newProgram("divert_process", &hook{kind: h.kind, attach: h.attach}, b.Instructions, ps.Maps(), map[string]*ebpf.Map{listenerMap: listener})
		if err != nil {
			return programs, fmt.Errorf("program %s: %w", h.name, err)
		}
		programs = append(programs, p)
	}
	return programs, nil
}

func closePrograms(programs []*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

// ProbeProcesses returns why the programs cannot be loaded here, nil if they can.
func ProbeProcesses() error {
	cgroup, err := OpenCgroup()
	if err != nil {
		return err
	}
	defer cgroup.Dir.Close()
	maps, err := codegen.NewProcesses()
	if err != nil {
		return err
	}
	defer maps.Close()
	programs, err := loadProcessPrograms(0, maps)
	closePrograms(programs)
	return err
}

// Description says what is known, for people.
func (ps *Processes) Description() string {
	if ps.whole {
		return "which knows processes"
	}
	if ps.cgroup == "" {
		return "which knows the processes of this cgroup namespace only"
	}
	return "which knows the processes below " + ps.cgroup + " only"
}

// Maps returns the maps for filter programs. They belong to ps.
func (ps *Processes) Maps() *codegen.Processes { return ps.maps }

// Close lets go of ps; when nobody uses it any more, the programs go.
func (ps *Processes) Close() error {
	shared.Lock()
	defer shared.Unlock()
	if ps.users--; ps.users > 0 {
		return nil
	}
	delete(shared.spaces, ps.space)
	return ps.release()
}

func (ps *Processes) release() error {
	var errs []error
	for _, l := range ps.links {
		errs = append(errs, l.Close())
	}
	if ps.maps != nil {
		errs = append(errs, ps.maps.Close())
	}
	return errors.Join(errs...)
}
