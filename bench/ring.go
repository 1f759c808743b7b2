//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring reads an AF_PACKET socket with a TPACKET_V3 ring (Documentation/networking/packet_mmap.rst): the kernel copies
// packets into blocks of shared memory, and hands over a block when it is full or old enough.
type ring struct {
	fd      int
	mem     []byte
	handled atomic.Uint64
	missed  uint64
	touched byte // keeps the compiler from removing the reads
	stop    atomic.Bool
	done    chan error
}

// The ring is as large as the buffers of the handle in the comparison.
const (
	ringBlock   = 1 << 20
	ringBlocks  = sniffMemory / ringBlock
	ringFrame   = 1 << 11 // alignment only, in this version
	ringTimeout = 10      // milliseconds
)

// sniffMemory is the buffer memory of sniffing contenders, in bytes.
const sniffMemory = 16 << 20

func openRing(t traffic) (worker, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // bound below, once the ring is ready
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	r := &ring{fd: fd, done: make(chan error, 1)}
	if err := r.setUp(t); err != nil {
		return nil, errors.Join(fmt.Errorf("packet ring: %w", err), r.free())
	}
	go func() { r.done <- r.run() }()
	return r, nil
}

func (r *ring) setUp(t traffic) error {
	if err := unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return err
	}
	if err := unix.SetsockoptTpacketReq3(r.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
		Block_size: ringBlock, Block_nr: ringBlocks, Frame_size: ringFrame, Frame_nr: ringBlocks * (ringBlock / ringFrame),
		Retire_blk_tov: ringTimeout,
	}); err != nil {
		return err
	}
	if err := attachDirection(r.fd, t.Inbound); err != nil {
		return err
	}
	var err error
	r.mem, err = unix.Mmap(r.fd, 0, ringBlock*ringBlocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	return unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)})
}

// networkOrder returns a number in the byte order of sockaddr_ll.
func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// Ancillary data of classic BPF (linux/filter.h).
const skfAdPktType = ^uint32(0) - 0x1000 + 1 + 4 // SKF_AD_OFF + SKF_AD_PKTTYPE

// attachDirection lets only packets of one direction into the ring, and no loopback packets.
func attachDirection(fd int, inbound bool) error {
	outgoing, other := byte(0), byte(1)
	if inbound {
		outgoing, other = 1, 0
	}
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: skfAdPktType},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jt: outgoing, Jf: other},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 18},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
}

func (r *ring) run() error {
	poll := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}
	for block := 0; ; block = (block + 1) % ringBlocks {
		b := r.mem[block*ringBlock : (block+1)*ringBlock]
		// struct tpacket_block_desc: version, offset of the private area, then tpacket_hdr_v1.
		head := (*unix.TpacketHdrV1)(unsafe.Pointer(&b[8]))
		for atomic.LoadUint32(&head.Block_status)&unix.TP_STATUS_USER == 0 {
			if r.stop.Load() {
				return nil
			}
			if _, err := unix.Poll(poll, 50); err != nil && !errors.Is(err, unix.EINTR) {
				return os.NewSyscallError("poll", err)
			}
		}
		r.walk(b, head)
		atomic.StoreUint32(&head.Block_status, unix.TP_STATUS_KERNEL)
	}
}

// walk reads the packets of a block.
func (r *ring) walk(b []byte, head *unix.TpacketHdrV1) {
	at := head.Offset_to_first_pkt
	for range head.Num_pkts {
		p := (*unix.Tpacket3Hdr)(unsafe.Pointer(&b[at]))
		r.touched += b[at+uint32(p.Net)]
		at += p.Next_offset
	}
	r.handled.Add(uint64(head.Num_pkts))
}

// counts reads the kernel's counters, which clears them.
func (r *ring) counts() (handled, missed uint64, err error) {
	s, err := unix.GetsockoptTpacketStatsV3(r.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0, 0, err
	}
	r.missed += uint64(s.Drops)
	return r.handled.Load(), r.missed, nil
}

func (r *ring) close() error {
	r.stop.Store(true)
	return errors.Join(<-r.done, r.free())
}

func (r *ring) free() error {
	var err error
	if r.mem != nil {
		err = unix.Munmap(r.mem)
	}
	return errors.Join(err, unix.Close(r.fd))
}
