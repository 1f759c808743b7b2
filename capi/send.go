//go:build !windows

package main

import (
	"sync"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// batch is the memory of a send call: packets, with memory for those that must be finished.
type batch [divert.MaxBatch]divert.Packet

var batches = sync.Pool{New: func() any { return new(batch) }}

// send injects the packets in b, back to back, one for each address of addrs (specification: api.md 8).
// It returns the bytes of the packets processed, 0 unless all went well.
func (h *handle) send(b, addrs []byte) (int, code) {
	f := h.divert.Flags()
	switch {
	case h.closing.Load():
		return 0, badCommand
	case h.sendDown.Load():
		return 0, noData
	case f&divert.RecvOnly != 0, h.divert.Layer() > divert.LayerForward:
		return 0, invalidParameter
	case len(b) == 0:
		return 0, insufficientBuffer
	}
	ps := batches.Get().(*batch)
	defer batches.Put(ps)
	n, size, malformed := ps.split(b, addrs)
	defer ps.forget(n)
	// Packets before a malformed one are sent, although the call fails.
	if n > 0 {
		_, err := engine.SendConst(h.divert, ps[:n]) // the caller's memory is read-only
		if result := codeOf(err); result != success && malformed == success {
			return 0, result
		}
	}
	if malformed != success {
		return 0, malformed
	}
	return size, success
}

// split makes packets of b. It returns the number of packets before a malformed one, their size, and the code of the
// malformed one's error.
func (ps *batch) split(b, addrs []byte) (n, size int, malformed code) {
	for len(addrs) >= packet.AddressSize {
		length, result := wholePacket(b[size:])
		if result != success {
			return n, size, result
		}
		p := &ps[n]
		_ = p.Addr.UnmarshalBinary(addrs[:packet.AddressSize]) // cannot fail with that length
		p.Data = b[size : size+length : size+length]
		n++
		size += length
		addrs = addrs[packet.AddressSize:]
	}
	return n, size, success
}

// forget drops the references to the caller's memory.
func (ps *batch) forget(n int) {
	for i := range ps[:n] {
		ps[i].Data = nil
	}
}

// maxReceived is the most bytes of a packet that the kernel hands over. A longer packet is received cut.
const maxReceived = 65531

// wholePacket returns the length of the packet at the start of b by its IP header alone. A packet that was received cut
// may be sent back unchanged: it ends with b.
func wholePacket(b []byte) (int, code) {
	if len(b) < packet.IPv4HeaderLen {
		return 0, insufficientBuffer
	}
	var n int
	switch b[0] >> 4 {
	case 4:
		if n = int(b[2])<<8 | int(b[3]); n < packet.IPv4HeaderLen {
			return 0, invalidParameter
		}
	case 6:
		if len(b) < packet.IPv6HeaderLen {
			return 0, insufficientBuffer
		}
		n = (int(b[4])<<8 | int(b[5])) + packet.IPv6HeaderLen
	default:
		return 0, invalidParameter
	}
	switch {
	case len(b) >= n:
		return n, success
	case len(b) == maxReceived:
		return maxReceived, success
	}
	return 0, insufficientBuffer
}
