//go:build linux

package detour

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/sockdiag"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Listeners is how many listeners of each family share the connects: as many connections may begin at one port of an application.
// A power of two.
const Listeners = 16

// Config says what is led where.
type Config struct {
	TCP   *prog.Program     // which connects of TCP: of LayerSocket, see prog.Program.AtConnect; nil for none
	Ports [Listeners]uint16 // of their listeners, at 127.0.0.1 and at ::1
	UDP   *Datagrams        // nil for none
	Max   int               // aims, and talks, at a time, with those of ended connections until Forget, or ForgetTalk

	// BySocket says that the program names each of its own sockets (SpareSocket). Otherwise those of its process and of its
	// descendants are known.
	BySocket bool

	// RefuseOthers refuses matching traffic that cannot be led: to link-local addresses with EADDRNOTAVAIL, and datagrams of
	// sockets that are bound to an interface with ENETUNREACH. Otherwise it passes.
	RefuseOthers bool
}

// Aim is where an application wanted to go.
type Aim struct {
	Dst     netip.AddrPort // an IPv4 address is never a mapped one
	Process uint32         // that connected, as the initial namespace numbers it
	Cookie  uint64         // of the application's socket
}

// Counts are the counters that the programs keep.
type Counts struct {
	Full   uint64 // connects, and datagrams, that were refused because there was no room
	Spared uint64 // those that matched, of sockets or processes that are spared
}

// Detour is a listener's part in the kernel. Its methods may be called from several goroutines.
type Detour struct {
	maps   map[string]*ebpf.Map
	find   *sockdiag.Finder
	others map[uint16]bool // the ports of the listeners of datagrams of other detours

	mu    sync.Mutex
	links []link.Link
}

// ErrNumbers means that processes cannot be named to the programs.
var ErrNumbers = errors.New("this is not the initial pid namespace, and the kernel's programs number processes as that does")

// Open loads the programs and attaches them to the root of the cgroup hierarchy. The calling thread is in the network namespace
// whose sockets are meant. The listeners must listen already.
func Open(cfg Config) (*Detour, error) {
	d := &Detour{maps: map[string]*ebpf.Map{}, others: map[uint16]bool{}}
	if err := d.open(&cfg); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Detour) open(cfg *Config) (err error) {
	if d.find, err = sockdiag.NewFinder(); err != nil {
		return err
	}
	root, err := cgroup.Open()
	if err != nil {
		return err
	}
	defer root.Dir.Close() // the links keep the cgroup
	if !root.Whole {
		return errPart
	}
	if err := d.openMaps(cfg); err != nil {
		return err
	}
	programs, err := load(cfg, d.maps)
	defer func() { closeAll(programs) }() // the links keep them
	if err != nil {
		return err
	}
	if err := d.learnOthers(root.Dir); err != nil {
		return err
	}
	for i, p := range programs {
		if p == nil {
			continue
		}
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(root.Dir.Fd()), Program: p, Attach: hooks[i].Attach})
		if err != nil {
			return fmt.Errorf("attach %s: %w", hooks[i].Name, err)
		}
		d.links = append(d.links, l)
	}
	return d.learnOthers(root.Dir) // one may have come before these meanwhile
}

// Connects: connects can be rewritten. The programs are loaded and not attached.
var Connects = &kernel.Feature{
	Name: "rewriting connects", Since: kernel.Version{Major: 6, Minor: 1}, For: "the road of sockets (package redirect, divert proxy --road sockets)",
	Without: "connections and datagrams are redirected packet by packet", Remedy: cgroup.Remedy + "; the kernel must have type information (CONFIG_DEBUG_INFO_BTF)",
	Probe: try, Mutable: true,
}

func try() error {
	root, err := cgroup.Open()
	if err != nil {
		return err
	}
	defer root.Dir.Close()
	if !root.Whole {
		return errPart
	}
	d := &Detour{maps: map[string]*ebpf.Map{}}
	all := prog.Constant(packet.LayerSocket, true)
	cfg := &Config{TCP: all, UDP: &Datagrams{Filter: all, Port: 1, Prefix: randomPrefix()}, Max: 1}
	err = d.openMaps(cfg)
	var programs []*ebpf.Program
	if err == nil {
		programs, err = load(cfg, d.maps)
	}
	closeAll(programs)
	return errors.Join(err, d.closeMaps())
}

var errPart = errors.New("only a part of the cgroup hierarchy can be reached, so connects of other processes would pass; run as root of the host")

func closeAll(programs []*ebpf.Program) {
	for _, p := range programs {
		p.Close()
	}
}

// programName names the programs, so that detours know each other.
const programName = "divert_detour"

func (d *Detour) openMaps(cfg *Config) error {
	state := make([]byte, stateSize)
	limit := uint32(min(cfg.Max, maxAims))
	var datagrams []*ebpf.MapSpec
	if cfg.UDP != nil {
		binary.BigEndian.PutUint16(state[stateUDP:], cfg.UDP.Port)
		datagrams = datagramMaps(limit)
		if err := cfg.UDP.check(); err != nil {
			return err
		}
	}
	for i, p := range cfg.Ports {
		binary.BigEndian.PutUint16(state[statePorts+4*i:], p)
	}
	const preallocNone = 1 << 0 // BPF_F_NO_PREALLOC
	for _, spec := range append(datagrams, []*ebpf.MapSpec{
		{Name: aimsMap, Type: ebpf.Hash, KeySize: 8, ValueSize: aimSize, MaxEntries: limit, Flags: preallocNone},
		{Name: stateMap, Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1, Contents: []ebpf.MapKV{{Key: uint32(0), Value: state}}},
		{Name: sparedMap, Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: maxSpared, Flags: preallocNone},
		{Name: socketsMap, Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: 1 << 20, Flags: preallocNone},
		{Name: othersMap, Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1 << 12, Flags: preallocNone},
	}...) {
		m, err := ebpf.NewMap(spec)
		if errors.Is(err, unix.EPERM) { // the library's hint at locked memory is misleading
			return fmt.Errorf("the kernel does not let maps be made: %w", unix.EPERM)
		}
		if err != nil {
			return fmt.Errorf("map %s: %w", spec.Name, err)
		}
		d.maps[spec.Name] = m
	}
	if cfg.BySocket {
		return nil
	}
	return d.SpareProcess(uint32(os.Getpid()))
}

// maxAims bounds Config.Max.
const maxAims = 1 << 24

// initialPIDs names the initial pid namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
const initialPIDs = "pid:[4026531836]"

// maxSpared is how many processes can be spared.
const maxSpared = 1 << 12

// layout has the offsets of fields of the kernel's structures.
type layout struct {
	process, parent int32 // in struct task_struct
	interface4      int32 // in struct inet_sock: IP_UNICAST_IF
	six             int32 // in struct inet_sock: the address of struct ipv6_pinfo; -1 without IPv6
	interface6      int32 // in struct ipv6_pinfo: IPV6_UNICAST_IF
}

var readLayout = sync.OnceValues(func() (l layout, err error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return l, err
	}
	offset := func(structure, field string) int32 {
		var s *btf.Struct
		if e := spec.TypeByName(structure, &s); e != nil {
			err = errors.Join(err, fmt.Errorf("struct %s: %w", structure, e))
			return 0
		}
		for _, m := range s.Members {
			if m.Name == field {
				return int32(m.Offset.Bytes())
			}
		}
		err = errors.Join(err, fmt.Errorf("struct %s has no %s", structure, field))
		return 0
	}
	l = layout{process: offset("task_struct", "tgid"), parent: offset("task_struct", "real_parent"), interface4: offset("inet_sock", "uc_index")}
	if err != nil {
		return l, err
	}
	l.six, l.interface6 = offset("inet_sock", "pinet6"), offset("ipv6_pinfo", "ucast_oif")
	if err != nil { // the kernel was built without IPv6
		l.six, err = -1, nil
	}
	return l, nil
})

// load loads the programs, in the order of hooks; nil where there is nothing to do. With an error come those that were loaded.
func load(cfg *Config, maps map[string]*ebpf.Map) (programs []*ebpf.Program, err error) {
	cookie, err := netns.Cookie()
	if err != nil {
		return nil, err
	}
	kernel, err := readLayout()
	if err != nil {
		return nil, fmt.Errorf("the kernel's type information, by which the children of processes are known: %w", err)
	}
	for i := range hooks {
		p, err := loadOne(&hooks[i], &builder{cfg: cfg, cookie: cookie, layout: kernel}, maps)
		if err != nil {
			return programs, fmt.Errorf("program %s: %w", hooks[i].Name, err)
		}
		programs = append(programs, p)
	}
	return programs, nil
}

func loadOne(h *hook, b *builder, maps map[string]*ebpf.Map) (*ebpf.Program, error) {
	if wanted, err := h.build(b); !wanted || err != nil {
		return nil, err
	}
	code, err := b.Link()
	if err != nil {
		return nil, err
	}
	return cgprog.LoadDecider(programName, h.Hook, code, &b.decider, maps)
}

// learnOthers enters the ports of the listeners of the detours that stand before this one, of whichever process. Traffic that
// they have led to their listeners is not led on.
func (d *Detour) learnOthers(root *os.File) error {
	for _, h := range hooks {
		if h.Attach != ebpf.AttachCGroupInet4Connect && h.Attach != ebpf.AttachCGroupInet6Connect {
			continue
		}
		attached, err := link.QueryPrograms(link.QueryOptions{Target: int(root.Fd()), Attach: h.Attach})
		if err != nil {
			return fmt.Errorf("list the programs at %s: %w", h.Name, err)
		}
		for _, a := range attached.Programs {
			for _, port := range portsOf(a.ID) {
				if err := d.maps[othersMap].Put(port, uint32(1)); err != nil {
					return fmt.Errorf("map %s: %w", othersMap, err)
				}
				if port > othersUDP {
					var b [4]byte
					binary.NativeEndian.PutUint32(b[:], port&^othersUDP)
					d.others[binary.BigEndian.Uint16(b[:])] = true
				}
			}
		}
	}
	return nil
}

// portsOf returns the ports of the listeners of a detour, as programs have them, by one of its programs; other programs have
// none.
func portsOf(id ebpf.ProgramID) (ports []uint32) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil // gone
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil || info.Name != programName {
		return nil
	}
	maps, _ := info.MapIDs()
	for _, id := range maps {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		ports = append(ports, portsIn(m)...)
		m.Close()
	}
	return ports
}

func portsIn(m *ebpf.Map) (ports []uint32) {
	info, err := m.Info()
	if err != nil || info.Name != stateMap || info.ValueSize != stateSize {
		return nil
	}
	var state [stateSize]byte
	if m.Lookup(uint32(0), &state) != nil {
		return nil
	}
	for i := range Listeners {
		ports = append(ports, binary.NativeEndian.Uint32(state[statePorts+4*i:]))
	}
	return append(ports, binary.NativeEndian.Uint32(state[stateUDP:])|othersUDP)
}

// SpareProcess lets the connects of a process and of all its descendants pass, until UnspareProcess. It fails with ErrNumbers where
// its number is not that by which the kernel knows it.
func (d *Detour) SpareProcess(id uint32) error {
	if in, err := os.Readlink("/proc/self/ns/pid"); err != nil || in != initialPIDs {
		return ErrNumbers
	}
	if err := d.maps[sparedMap].Put(id, uint32(1)); err != nil {
		return fmt.Errorf("spare process %d: %w", id, err)
	}
	return nil
}

// UnspareProcess ends what SpareProcess has begun.
func (d *Detour) UnspareProcess(id uint32) { _ = d.maps[sparedMap].Delete(id) }

// SpareSocket lets the connects of a socket pass, until Forget: see Config.BySocket.
func (d *Detour) SpareSocket(fd int) (cookie uint64, err error) {
	if cookie, err = sockdiag.Cookie(fd); err != nil {
		return 0, err
	}
	if err := d.maps[socketsMap].Put(cookie, uint32(1)); err != nil {
		return 0, fmt.Errorf("spare a socket: %w", err)
	}
	return cookie, nil
}

// UnspareSocket ends what SpareSocket has begun.
func (d *Detour) UnspareSocket(cookie uint64) { _ = d.maps[socketsMap].Delete(cookie) }

// Find returns the aim of a connection, by its two ends: that of the application, and that of the listener.
func (d *Detour) Find(application, listener netip.AddrPort) (a Aim, ok bool, err error) {
	s, ok, err := d.find.TCP(application, listener)
	if !ok || err != nil {
		return a, false, err
	}
	var v [aimSize]byte
	if err := d.maps[aimsMap].Lookup(s.Cookie, &v); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			err = nil
		}
		return a, false, err
	}
	a, alias := parseAim(v[:])
	a.Cookie = s.Cookie
	return a, alias == listener.Port(), nil
}

// parseAim reads an aim, and the port of its listener.
func parseAim(v []byte) (a Aim, alias uint16) {
	a.Dst = parseAddrPort(v[aimAddr:], v[aimPort:])
	a.Process = binary.NativeEndian.Uint32(v[aimProcess:])
	return a, binary.BigEndian.Uint16(v[aimAlias:])
}

// parseAddrPort reads an address, as the programs keep it, and a port.
func parseAddrPort(addr, port []byte) netip.AddrPort {
	var ip [16]byte
	binary.BigEndian.PutUint64(ip[:], binary.NativeEndian.Uint64(addr))
	binary.BigEndian.PutUint64(ip[8:], binary.NativeEndian.Uint64(addr[8:]))
	return netip.AddrPortFrom(netip.AddrFrom16(ip).Unmap(), binary.BigEndian.Uint16(port))
}

// Forget removes an aim.
func (d *Detour) Forget(cookie uint64) { _ = d.maps[aimsMap].Delete(cookie) }

// Released returns the cookies of the aims whose sockets the applications have closed, with the times, CLOCK_MONOTONIC in
// nanoseconds.
func (d *Detour) Released() (map[uint64]int64, error) {
	released := map[uint64]int64{}
	var cookie uint64
	var v [aimSize]byte
	all := d.maps[aimsMap].Iterate()
	for all.Next(&cookie, &v) {
		if at := binary.NativeEndian.Uint64(v[aimReleased:]); at != 0 {
			released[cookie] = int64(at)
		}
	}
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // that means others come and go
		return released, err
	}
	return released, nil
}

// Counts returns the counters.
func (d *Detour) Counts() (c Counts) {
	var state [stateSize]byte
	if d.maps[stateMap].Lookup(uint32(0), &state) == nil {
		c.Full = binary.NativeEndian.Uint64(state[stateFull:])
		c.Spared = binary.NativeEndian.Uint64(state[stateSpared:])
	}
	return c
}

// Others returns the ports of the listeners of datagrams of the detours that were there before this one.
func (d *Detour) Others() []uint16 { return slices.Sorted(maps.Keys(d.others)) }

// Detach takes the programs away: connects go directly from its return on. Find still works.
func (d *Detour) Detach() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for i := range d.links {
		errs = append(errs, d.links[len(d.links)-1-i].Close())
	}
	d.links = nil
	return errors.Join(errs...)
}

// Close removes everything. No method may be called any more.
func (d *Detour) Close() error {
	errs := []error{d.Detach(), d.closeMaps()}
	if d.find != nil {
		errs = append(errs, d.find.Close())
	}
	return errors.Join(errs...)
}

func (d *Detour) closeMaps() (err error) {
	for _, m := range d.maps {
		err = errors.Join(err, m.Close())
	}
	return err
}

// Knows returns nil if the kernel finds a connection's own socket by its two ends, with the cookie that programs see.
func (d *Detour) Knows(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cookie uint64
	if e := raw.Control(func(fd uintptr) { cookie, err = sockdiag.Cookie(int(fd)) }); e != nil || err != nil {
		return errors.Join(e, err)
	}
	s, ok, err := d.find.TCP(c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort())
	if err == nil && (!ok || s.Cookie != cookie) {
		err = fmt.Errorf("sock_diag does not find the socket %v", c.LocalAddr())
	}
	return err
}
