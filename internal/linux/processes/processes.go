//go:build linux

package processes

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"

	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/processmap"
)

// listenerMap is the storage with the process of a listener, which its children inherit.
const listenerMap = "divert_listener"

// Flags of maps (linux/bpf.h).
const (
	flagNoPrealloc = 1 << 0
	flagClone      = 1 << 9
)

func listenerSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: listenerMap, Type: ebpf.SkStorage, KeySize: 4, ValueSize: 8, Flags: flagNoPrealloc | flagClone,
		Key: &btf.Int{Name: "unsigned int", Size: 4}, Value: &btf.Int{Name: "unsigned long", Size: 8},
	}
}

// Processes knows the processes of the sockets of a network namespace, as long as it is open. All handles of this
// process in the namespace share it.
type Processes struct {
	maps  *processmap.Maps
	links []link.Link
	users int
	space uint64 // cookie of the namespace

	whole  bool   // the programs are attached to the root of the hierarchy, so that every process is seen
	cgroup string // where they are attached otherwise
}

// shared are the Processes that are open, by namespace.
var shared struct {
	sync.Mutex
	spaces map[uint64]*Processes
}

// Open makes the processes of the sockets of the calling thread's namespace known, of those that are there
// already too.
func Open() (*Processes, error) {
	space, err := netns.Cookie()
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

// open attaches the programs and then enters the sockets that are older: the programs have seen those made meanwhile.
func (ps *Processes) open() error {
	root, err := cgroup.Open()
	if err != nil {
		return err
	}
	defer root.Dir.Close() // the links keep the cgroup
	ps.whole, ps.cgroup = root.Whole, root.Path
	if ps.maps, err = processmap.New(); err != nil {
		return err
	}
	loaded, err := load(ps.space, ps.maps)
	defer closeAll(loaded) // the links keep them
	if err != nil {
		return err
	}
	for i, p := range loaded {
		h := &programs[i]
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(root.Dir.Fd()), Program: p, Attach: h.Attach})
		if err != nil {
			return fmt.Errorf("attach %s: %w", h.Name, err)
		}
		ps.links = append(ps.links, l)
	}
	return ps.adoptOlder()
}

// load loads all programs. With an error come those that were loaded.
func load(space uint64, maps *processmap.Maps) (loaded []*ebpf.Program, err error) {
	listener, err := ebpf.NewMap(listenerSpec())
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", listenerMap, err)
	}
	defer listener.Close() // the programs keep it
	for i := range programs {
		h := &programs[i]
		b := &builder{namespace: space}
		h.build(b)
		code, err := b.Link()
		if err != nil {
			return loaded, fmt.Errorf("program %s: %w", h.Name, err)
		}
		p, err := cgprog.Load("divert_process", h.Hook, code, maps.All(), map[string]*ebpf.Map{listenerMap: listener})
		if err != nil {
			return loaded, fmt.Errorf("program %s: %w", h.Name, err)
		}
		loaded = append(loaded, p)
	}
	return loaded, nil
}

func closeAll(loaded []*ebpf.Program) {
	for _, p := range loaded {
		p.Close()
	}
}

// OfPackets: the processes of packets can be known. The programs are loaded and not attached.
var OfPackets = &kernel.Feature{
	Name: "processes of packets", Since: kernel.Version{Major: 6, Minor: 1}, For: "processId at the layer network, and in dump",
	Without: "handles whose filter has processId at the layer network do not open, and dump does not tell processes",
	Remedy:  cgroup.Remedy, Probe: try, Mutable: true,
}

func try() error {
	root, err := cgroup.Open()
	if err != nil {
		return err
	}
	defer root.Dir.Close()
	maps, err := processmap.New()
	if err != nil {
		return err
	}
	defer maps.Close()
	loaded, err := load(0, maps)
	closeAll(loaded)
	return err
}

// Description tells people which processes are known.
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
func (ps *Processes) Maps() *processmap.Maps { return ps.maps }

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
