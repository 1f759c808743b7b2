//go:build linux

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/nfnl"
)

// Each flow of the load is a source address and port, with a range of ports from firstFlowPort on for each address.
// Only the destination belongs to a host, since the rule that counts drops the packets before they are routed.
const (
	firstFlowPort   = 20000
	portsOfAddress  = 1000
	firstFlowSource = 100 // the last byte of the first address
)

// flowNumberAt is the offset of the flow's number in a packet of the load: the first four bytes of the payload, in
// network order.
const flowNumberAt = udpHeaders

// rotating returns the load that sends UDP packets of size bytes, headers included, each of another flow, until every
// flow has had its turn. Unmeasured rounds come first: they begin the flows.
func rotating(size int) func(*course) error {
	return func(c *course) error {
		sink, err := newSink(c)
		if err != nil {
			return err
		}
		seen, err := c.arrivals()
		if err == nil {
			err = errors.Join(c.rotate(sink, seen, size), seen.close())
		}
		return errors.Join(err, sink.remove(), untracked(c.from), untracked(c.to))
	}
}

// rotate sends all flows in turn as often as the contender needs it, then for the duration, and measures.
func (c *course) rotate(s sink, seen *arrivals, size int) error {
	var r *rotor
	if err := c.from.Do(func() (err error) {
		r, err = newRotor(c, size)
		return err
	}); err != nil {
		return err
	}
	defer r.close()
	ahead := uint64(c.turns * r.flows)
	for r.sent < ahead {
		if err := r.burst(int(ahead - r.sent)); err != nil {
			return err
		}
	}
	before, _, err := s.settled(ahead, false)
	if err != nil {
		return err
	}
	if err := c.begin(); err != nil {
		return err
	}
	began := time.Now()
	for time.Since(began) < c.duration {
		if err := r.burst(floodBatch); err != nil {
			return err
		}
	}
	sentIn := time.Since(began)
	arrived, last, err := s.settled(r.sent, false)
	if err != nil {
		return err
	}
	if arrived > r.sent {
		return fmt.Errorf("%d packets arrived, %d were sent", arrived, r.sent)
	}
	c.cell.Sent, c.cell.Lost = r.sent-ahead, r.sent-arrived
	if c.cell.FlowsLost, err = seen.short(r.sent); err != nil {
		return err
	}
	return c.end(max(sentIn, last.Sub(began)), float64(arrived-before))
}

// untracked fails if the kernel's connection tracking has flows of a host: the load must not pay for it.
func untracked(h *lab.Host) error {
	text, err := h.SysctlValue("net.netfilter.nf_conntrack_count")
	if errors.Is(err, os.ErrNotExist) || err == nil && text == "0" {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("connection tracking knows %s flows on %v", text, h)
	}
	return err
}

// rotor sends packets of flows in turn through one raw socket, whose send buffer limits the packets in flight.
type rotor struct {
	fd    int
	flows int
	size  int
	buf   []byte // floodBatch packets
	iovs  []unix.Iovec
	hdrs  []mmsghdr
	sent  uint64
}

// newRotor makes a rotor in the sender's namespace.
func newRotor(c *course, size int) (*rotor, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // packets include the IP header
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	r := &rotor{fd: fd, flows: c.cell.load.flows, size: size,
		buf: make([]byte, floodBatch*size), iovs: make([]unix.Iovec, floodBatch), hdrs: make([]mmsghdr, floodBatch)}
	err = limitWaits(fd)
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, &unix.SockaddrInet4{Addr: c.target().Addr().As4()}))
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	nfnl.SetSendBuffer(fd, sendBuffer)
	from, to := c.from.Addr4().As4(), c.target().Addr().As4()
	for i := range r.hdrs {
		// The kernel fills in length, identification and checksum of the IP header (raw(7)). UDP has no checksum here.
		b := r.packet(i)
		b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
		copy(b[12:], from[:])
		copy(b[16:], to[:])
		binary.BigEndian.PutUint16(b[22:], c.target().Port())
		binary.BigEndian.PutUint16(b[24:], uint16(size-20))
		r.iovs[i].Base = &b[0]
		r.iovs[i].SetLen(size)
		r.hdrs[i].hdr.Iov = &r.iovs[i]
		r.hdrs[i].hdr.SetIovlen(1)
	}
	return r, nil
}

func (r *rotor) packet(i int) []byte { return r.buf[i*r.size : (i+1)*r.size] }

func (r *rotor) close() { unix.Close(r.fd) }

// burst sends one packet of each of the next flows, at most most. It uses the socket's namespace, whichever thread
// calls.
func (r *rotor) burst(most int) error {
	n := min(most, floodBatch)
	for i := range n {
		flow := int((r.sent + uint64(i)) % uint64(r.flows))
		b := r.packet(i)
		b[15] = byte(firstFlowSource + flow/portsOfAddress)
		binary.BigEndian.PutUint16(b[20:], uint16(firstFlowPort+flow%portsOfAddress))
		binary.BigEndian.PutUint32(b[flowNumberAt:], uint32(flow))
	}
	return sendMany(r.fd, r.hdrs[:n], &r.sent)
}

// arrivals counts the packets of each flow that arrive at a host, with a program in the kernel that sees every packet
// before the rules do.
type arrivals struct {
	counts *ebpf.Map // nil where the kernel refuses to load programs
	fd     int
	flows  int
}

// arrivals starts to count.
func (c *course) arrivals() (*arrivals, error) {
	a := &arrivals{fd: -1, flows: c.cell.load.flows}
	err := c.to.Do(func() error { return a.open(c.target().Port()) })
	if errors.Is(err, os.ErrPermission) {
		// An ordinary user in a user namespace: the packets are counted, but not by flow.
		return &arrivals{fd: -1}, a.close()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("count what arrives by flow: %w", err), a.close())
	}
	return a, nil
}

func (a *arrivals) open(port uint16) (err error) {
	if a.counts, err = ebpf.NewMap(&ebpf.MapSpec{Name: "bench_arrivals", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: uint32(a.flows)}); err != nil {
		return err
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "bench_arrivals", Type: ebpf.SocketFilter, License: "GPL", Instructions: a.program(port)})
	if err != nil {
		return err
	}
	defer program.Close()                                                                          // the socket keeps it
	if a.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil { // bound below, once the filter is attached
		return os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, program.FD()); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return os.NewSyscallError("bind", unix.Bind(a.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP)}))
}

// program counts IPv4 UDP packets to a port by their flow's number, and passes none to the socket.
func (a *arrivals) program(port uint16) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadAbs(9, asm.Byte), // the protocol
		asm.JNE.Imm(asm.R0, unix.IPPROTO_UDP, "out"),
		asm.LoadAbs(22, asm.Half), // the destination port
		asm.JNE.Imm(asm.R0, int32(port), "out"),
		asm.LoadAbs(flowNumberAt, asm.Word),
		asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
		asm.LoadMapPtr(asm.R1, a.counts.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
		asm.Return(),
	}
}

// short returns the number of flows of which fewer packets arrived than were sent; sent is the number that a rotor sent
// in all. nil: not counted.
func (a *arrivals) short(sent uint64) (*int, error) {
	if a.counts == nil {
		return nil, nil
	}
	lost := 0
	keys, values := make([]uint32, a.flows), make([]uint32, a.flows)
	var cursor ebpf.MapBatchCursor
	n, err := a.counts.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // the end
		return nil, fmt.Errorf("read what arrived by flow: %w", err)
	}
	if n != a.flows {
		return nil, fmt.Errorf("counts of %d flows instead of %d", n, a.flows)
	}
	turns, rest := sent/uint64(a.flows), sent%uint64(a.flows)
	for i, flow := range keys {
		due := turns
		if uint64(flow) < rest {
			due++
		}
		if uint64(values[i]) < due {
			lost++
		}
	}
	return &lost, nil
}

func (a *arrivals) close() error {
	var err error
	if a.counts != nil {
		err = a.counts.Close()
	}
	if a.fd >= 0 {
		err = errors.Join(err, unix.Close(a.fd))
	}
	return err
}

// again counts how often packets of the same flow come to a program that decides each flow with its first packet. It belongs to the
// goroutine that receives, but for most.
type again struct {
	came []uint32 // packets, by the number of the flow
	most atomic.Uint64
}

// note counts packets that have been received. Where nobody decides flows it does not look at them.
func (a *again) note(ps []divert.Packet) {
	if len(a.came) == 0 {
		return
	}
	for i := range ps {
		b := ps[i].Data
		if len(b) < flowNumberAt+4 || b[0] != 0x45 || b[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(b[22:]) != loadPort {
			continue
		}
		flow := binary.BigEndian.Uint32(b[flowNumberAt:])
		if int(flow) >= len(a.came) {
			continue
		}
		if more := uint64(a.came[flow]); more > a.most.Load() {
			a.most.Store(more)
		}
		a.came[flow]++
	}
}

// mapMemory returns the memory of all eBPF maps that the process holds, in bytes, as the kernel tells it: since Linux 6.4 as it is,
// before that as it is at most (kernel/bpf/syscall.c, bpf_map_show_fdinfo).
func mapMemory() (uint64, error) {
	names, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		return 0, err
	}
	sizes := make(map[string]uint64) // by the map's number, for it may have several descriptors
	for _, name := range names {
		number, bytes, err := mapInfo(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // closed meanwhile
			return 0, err
		}
		if number != "" {
			sizes[number] = bytes
		}
	}
	var all uint64
	for _, bytes := range sizes {
		all += bytes
	}
	return all, nil
}

// mapInfo returns number and memory of the map that a descriptor belongs to; the number is "" if it is that of no map.
func mapInfo(name string) (number string, bytes uint64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		switch value = strings.TrimSpace(value); key {
		case "map_id":
			number = value
		case "memlock":
			if bytes, err = strconv.ParseUint(value, 10, 64); err != nil {
				return "", 0, err
			}
		}
	}
	return number, bytes, nil
}
