//go:build linux

package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// Sockets that are older than the handle have no storage. Open therefore lists them with their processes,
// and a program that meets one takes what it knows from there. (Events that happened before are not told,
// specification: api.md 3; but their sockets have a future.) Sockets of the kernel itself are not among
// them, and so stay unseen.

// older is a socket that was there before.
type older struct {
	body     [storedSize]byte // as it is kept in storage
	endpoint uint64
	listener [listenerKeySize]byte // the key of the map of listeners
	listens  bool
}

// leastOlder is how many older sockets the maps have room for at least.
const leastOlder = 1 << 16

// olderRoom returns how many older sockets the maps are to have room for: twice as many as there are in the calling
// thread's namespace, since they are listed only later.
func olderRoom() uint32 {
	n := 0
	for _, name := range [...]string{"sockstat", "sockstat6"} {
		if text, err := os.ReadFile("/proc/thread-self/net/" + name); err == nil {
			n += inUse(string(text))
		}
	}
	return uint32(max(leastOlder, 2*n))
}

// inUse adds up the sockets of TCP and UDP in /proc/net/sockstat or sockstat6 (proc_pid_net(5)), lines such as "TCP: inuse 1 …".
func inUse(sockstat string) (n int) {
	for line := range strings.Lines(sockstat) {
		f := strings.Fields(line)
		if len(f) < 3 || f[1] != "inuse" {
			continue
		}
		switch f[0] {
		case "TCP:", "UDP:", "TCP6:", "UDP6:":
			count, _ := strconv.Atoi(f[2])
			n += count
		}
	}
	return n
}

// listenerKeySize is the size of the key of the map of older listeners: address and port.
const listenerKeySize = 24

// olderKinds are the sockets that are listed.
var olderKinds = [...]struct {
	family, protocol uint8
}{
	{unix.AF_INET, protoTCP}, {unix.AF_INET6, protoTCP}, {unix.AF_INET, protoUDP}, {unix.AF_INET6, protoUDP},
}

// adoptOlder lists the sockets of the calling thread's namespace for the programs.
func (s *Source) adoptOlder() error {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return fmt.Errorf("open sock_diag: %w", err)
	}
	defer conn.Close()
	owners := socketOwners()
	for _, kind := range olderKinds {
		list, err := listSockets(conn, kind.family, kind.protocol, owners)
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		for i := range list {
			if err := s.adopt(&list[i]); err != nil {
				return fmt.Errorf("list sockets: %w", err)
			}
		}
	}
	return nil
}

// adopt enters a socket. If more have come since olderRoom than it has allowed for, those without room stay unseen.
func (s *Source) adopt(o *older) error {
	err := s.maps[olderMap].Put(o.endpoint, o.body[:])
	if err == nil && o.listens {
		err = s.maps[listenersMap].Put(o.listener[:], o.body[:])
	}
	if errors.Is(err, unix.E2BIG) {
		return nil
	}
	return err
}

// States of TCP that have no socket of a process (net/tcp_states.h).
const (
	stateSynReceived    = 3
	stateTimeWait       = 6
	stateListen         = 10
	stateNewSynReceived = 12

	statesListed = ^uint32(1<<stateSynReceived | 1<<stateTimeWait | 1<<stateNewSynReceived)
)

// listSockets returns the sockets of a family and protocol (linux/inet_diag.h).
func listSockets(conn *netlink.Conn, family, protocol uint8, owners map[uint32]uint32) ([]older, error) {
	messages, err := dumpSockets(conn, family, protocol)
	if unlisted(err) {
		return nil, nil
	}
	var list []older
	for _, m := range messages {
		if o, ok := parseOlder(m.Data, protocol, owners); ok {
			list = append(list, o)
		}
	}
	return list, err
}

// dumpSockets asks the kernel for the sockets of a family and protocol.
func dumpSockets(conn *netlink.Conn, family, protocol uint8) ([]netlink.Message, error) {
	const byFamily = 20
	request := make([]byte, diagRequestSize)
	request[0], request[1] = family, protocol
	binary.NativeEndian.PutUint32(request[4:], statesListed)
	return conn.Execute(netlink.Message{
		Header: netlink.Header{Type: byFamily, Flags: netlink.Request | netlink.Dump},
		Data:   request,
	})
}

// unlisted reports whether a dump has failed because the kernel does not list such sockets, or has none.
func unlisted(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) }

// listed is a socket that the kernel has listed.
type listed struct {
	family, state uint8
	protocol      uint8
	inode         uint32
	cookie        uint64
	local, remote netip.AddrPort // IPv4 mapped
}

// parseListed reads a socket from a message (struct inet_diag_msg of linux/inet_diag.h).
func parseListed(b []byte, protocol uint8) (s listed, ok bool) {
	if len(b) < diagSize {
		return s, false
	}
	ne, be := binary.NativeEndian, binary.BigEndian
	return listed{
		family: b[0], state: b[1], protocol: protocol,
		inode:  ne.Uint32(b[68:]),
		cookie: uint64(ne.Uint32(b[44:])) | uint64(ne.Uint32(b[48:]))<<32,
		local:  netip.AddrPortFrom(diagAddr(b[8:24], b[0]), be.Uint16(b[4:])),
		remote: netip.AddrPortFrom(diagAddr(b[24:40], b[0]), be.Uint16(b[6:])),
	}, true
}

// diagSize is the size of struct inet_diag_msg.
const diagSize = 72

// parseOlder reads a socket from a message. Those that belong to no process are passed over.
func parseOlder(b []byte, protocol uint8, owners map[uint32]uint32) (o older, ok bool) {
	s, ok := parseListed(b, protocol)
	if !ok {
		return o, false
	}
	pid, ok := owners[s.inode]
	if !ok {
		return o, false
	}
	ne := binary.NativeEndian
	local, remote := s.local.Addr(), s.remote.Addr()
	localPort, remotePort := s.local.Port(), s.remote.Port()
	if remotePort == 0 && remote.Unmap().IsUnspecified() {
		remote = netip.IPv6Unspecified()
	}
	o.endpoint = s.cookie
	o.listens = protocol == protoTCP && s.state == stateListen
	put := func(field int16) []byte { return o.body[body(field):] }
	ne.PutUint64(put(codegen.EventEndpoint), o.endpoint)
	putAddr(put(codegen.EventLocal), local)
	putAddr(put(codegen.EventRemote), remote)
	ne.PutUint32(put(codegen.EventProcess), pid)
	ne.PutUint16(put(codegen.EventLocalPort), localPort)
	ne.PutUint16(put(codegen.EventRemotePort), remotePort)
	put(codegen.EventProtocol)[0] = protocol
	if !local.Is4In6() {
		put(codegen.EventIPv6)[0] = 1
	}
	if l := local.Unmap(); l.IsLoopback() || remotePort != 0 && local == remote {
		put(codegen.EventLoopback)[0] = 1
	}
	ne.PutUint32(put(codegen.EventFlags), flagUser)
	putAddr(o.listener[:], local)
	ne.PutUint64(o.listener[16:], uint64(localPort))
	return o, true
}

// diagAddr reads an address in network byte order; IPv4 ones are mapped.
func diagAddr(b []byte, family byte) netip.Addr {
	if family == unix.AF_INET {
		return netip.AddrFrom16(netip.AddrFrom4([4]byte(b)).As16())
	}
	return netip.AddrFrom16([16]byte(b))
}

// putAddr writes an address as two words in host byte order, the upper first.
func putAddr(b []byte, a netip.Addr) {
	ip := a.As16()
	binary.NativeEndian.PutUint64(b[0:], binary.BigEndian.Uint64(ip[0:]))
	binary.NativeEndian.PutUint64(b[8:], binary.BigEndian.Uint64(ip[8:]))
}

// socketOwners returns the processes that have sockets of the calling thread's network namespace open, by
// the inodes of the sockets.
func socketOwners() map[uint32]uint32 {
	owners := map[uint32]uint32{}
	for inode, h := range socketHolders() {
		owners[inode] = h.process
	}
	return owners
}

// holder is a process that has a socket open, and its descriptor of it.
type holder struct {
	process uint32
	fd      int
}

// socketHolders returns who has sockets of the calling thread's network namespace open, and of others the calling
// process, by the inodes of the sockets. Of several processes it is the one with the lowest id.
func socketHolders() map[uint32]holder {
	holders := map[uint32]holder{}
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return holders
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		pid, err := strconv.ParseUint(filepath.Base(dir), 10, 32)
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != here && uint64(os.Getpid()) != pid {
			continue // of another namespace, gone, or not ours to look at
		}
		for inode, fd := range socketInodes(dir + "/fd") {
			if h, has := holders[inode]; !has || uint32(pid) < h.process {
				holders[inode] = holder{uint32(pid), fd}
			}
		}
	}
	return holders
}

// socketInodes returns the inodes of the sockets in a directory of descriptors, with a descriptor of each.
func socketInodes(dir string) map[uint32]int {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	inodes := map[uint32]int{}
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		target, err := os.Readlink(dir + "/" + name)
		if err != nil {
			continue
		}
		number, isSocket := strings.CutPrefix(target, "socket:[")
		inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32)
		if !isSocket || err != nil {
			continue
		}
		if fd, err := strconv.Atoi(name); err == nil {
			inodes[uint32(inode)] = fd
		}
	}
	return inodes
}

// olderMaps are the maps of older sockets.
func olderMaps(room uint32) []*ebpf.MapSpec {
	return []*ebpf.MapSpec{
		{Name: olderMap, Type: ebpf.Hash, KeySize: 8, ValueSize: uint32(storedSize), MaxEntries: room, Flags: flagNoPrealloc},
		{Name: listenersMap, Type: ebpf.Hash, KeySize: listenerKeySize, ValueSize: uint32(storedSize), MaxEntries: room, Flags: flagNoPrealloc},
	}
}

// known finds the storage of a socket, or makes it of what is known of an older one. Operations of other
// sockets pass.
func (b *builder) known(sock int16) {
	has := b.newLabel()
	b.loadStorage(sock, asm.Mov.Imm(asm.R3, 0), 0)
	b.emit(
		asm.JNE.Imm(asm.R0, 0, has),
		asm.Mov.Reg(asm.R1, regContext),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(regFrame, frameKey, asm.R0, asm.DWord),
		mapPtr(asm.R1, olderMap),
	)
	b.point(asm.R2, frameKey)
	b.emit(asm.FnMapLookupElem.Call())
	b.allowIf(asm.JEq, asm.R0, 0)
	b.emit(asm.Mov.Reg(asm.R7, asm.R0))
	b.loadStorage(sock, asm.Mov.Reg(asm.R3, asm.R7), storageCreate)
	b.allowIf(asm.JEq, asm.R0, 0)
	b.mark(has)
	b.emit(asm.Mov.Reg(regStorage, asm.R0))
}

// inherit makes the record of a child that has no storage of its own begin with its listener's, if that is
// an older one. The record has both sides.
func (b *builder) inherit() {
	found, end := b.newLabel(), b.newLabel()
	b.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.JNE.Imm(asm.R1, 0, end),
		asm.LoadMem(asm.R1, regContext, opsLocalPort, asm.Word),
		asm.StoreMem(regFrame, frameKey+16, asm.R1, asm.DWord),
	)
	// The listener has the address, or any address, of either family.
	for _, addr := range [...]func(){
		func() { b.keyAddress(codegen.EventLocal) },
		func() { b.keyConstant(0, 0) },
		func() { b.keyConstant(0, mapped) },
	} {
		addr()
		b.emit(mapPtr(asm.R1, listenersMap))
		b.point(asm.R2, frameKey)
		b.emit(asm.FnMapLookupElem.Call(), asm.JNE.Imm(asm.R0, 0, found))
	}
	b.emit(asm.Ja.Label(end))
	b.mark(found)
	for _, f := range [...]struct {
		field int16
		size  asm.Size
	}{{codegen.EventEndpoint, asm.DWord}, {codegen.EventProcess, asm.Word}, {codegen.EventFlags, asm.Word}} {
		b.emit(
			asm.LoadMem(asm.R1, asm.R0, body(f.field), f.size),
			asm.StoreMem(regFrame, record(f.field), asm.R1, f.size),
		)
	}
	b.mark(end)
}

// keyAddress copies an address of the record to the key.
func (b *builder) keyAddress(field int16) {
	for i := int16(0); i < 16; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regFrame, record(field)+i, asm.DWord),
			asm.StoreMem(regFrame, frameKey+i, asm.R1, asm.DWord),
		)
	}
}

// keyConstant stores an address in the key.
func (b *builder) keyConstant(upper, lower int64) {
	b.emit(
		asm.LoadImm(asm.R1, upper, asm.DWord),
		asm.StoreMem(regFrame, frameKey, asm.R1, asm.DWord),
		asm.LoadImm(asm.R1, lower, asm.DWord),
		asm.StoreMem(regFrame, frameKey+8, asm.R1, asm.DWord),
	)
}
