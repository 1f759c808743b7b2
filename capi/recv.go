//go:build !windows

package main

import (
	"errors"
	"net"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// delivery is what a receive call delivers to: the caller's memory.
type delivery struct {
	buf   []byte // for the packets, back to back; may be nil
	addrs []byte // for their addresses in the C layout; nil if they are not wanted
	max   int    // packets

	size  int // bytes delivered
	count int // packets delivered, a truncated one included
}

// recv receives into d for a call that waits in its thread.
func (h *handle) recv(d *delivery) code {
	c := places.Get().(*turn)
	defer places.Put(c)
	c.cancelled = false
	immediate, ok := h.turns.enter(c)
	if !ok {
		return badCommand
	}
	if !immediate && !h.turns.wait(c) {
		return operationAborted
	}
	defer h.turns.leave(c)
	return h.receive(c, d)
}

// recvOverlapped receives into d for an overlapped request. If it cannot be served at once it returns
// ioPending, and done is called when it is complete, before the handle closes.
func (h *handle) recvOverlapped(request uintptr, d *delivery, done func(*delivery, code)) code {
	c := &turn{request: request, ready: make(chan struct{}, 1)}
	immediate, ok := h.turns.enter(c)
	if !ok {
		return badCommand
	}
	if immediate && h.ready() {
		defer h.turns.overlapped.Done()
		defer h.turns.leave(c)
		return h.receive(c, d)
	}
	go func() {
		defer h.turns.overlapped.Done()
		if !immediate && !h.turns.wait(c) {
			done(d, operationAborted)
			return
		}
		result := h.receive(c, d)
		h.turns.leave(c)
		done(d, result)
	}()
	return ioPending
}

// ready reports whether receiving needs not wait. The caller's turn it must be.
func (h *handle) ready() bool {
	return h.held.first < h.held.last && !h.expired() || h.divert.Flags()&divert.SendOnly != 0
}

// receive waits for packets and delivers them. It is the call's turn.
func (h *handle) receive(c *turn, d *delivery) code {
	held := &h.held
	if h.expired() {
		held.first, held.last = 0, 0
	}
	for held.first == held.last {
		n, err := h.divert.RecvBatch(held.packets[:h.ahead(d)])
		room() // a long wait may have had the stack shrink
		switch {
		case err == nil:
			held.first, held.last = 0, n
		case interrupted(err):
			if !h.turns.goOn(c) {
				return operationAborted
			}
		case errors.Is(err, net.ErrClosed):
			return operationAborted // it was open when the call began
		default:
			return codeOf(err)
		}
	}
	result := h.deliver(d)
	if held.first < held.last {
		held.since = time.Now()
	}
	return result
}

// ahead returns how many packets to receive for d. Some may not fit into its buffer; they are held, and given
// back when the handle closes. A handle that cannot give back does not receive more than surely fits.
func (h *handle) ahead(d *delivery) int {
	f := h.divert.Flags()
	if h.hasData() && f&divert.RecvOnly != 0 && f&divert.Sniff == 0 {
		return min(d.max, max(1, len(d.buf)/divert.MaxPacket))
	}
	return d.max
}

// deliver copies held packets to the caller (specification: api.md 7, batch packing rules).
func (h *handle) deliver(d *delivery) code {
	held := &h.held
	for d.count < d.max && held.first < held.last {
		p := &held.packets[held.first]
		data := p.Data
		if !h.hasData() {
			data = nil
		}
		fits := len(data) <= len(d.buf)-d.size
		if !fits && d.count > 0 {
			break
		}
		held.first++
		if !fits && len(d.buf) == 0 {
			return insufficientBuffer // the packet is lost, and nothing tells of it
		}
		if d.addrs != nil {
			at := d.addrs[d.count*packet.AddressSize:]
			_, _ = p.Addr.AppendBinary(at[:0]) // into the caller's memory; it cannot fail
		}
		d.size += copy(d.buf[d.size:], data)
		d.count++
		if !fits {
			return insufficientBuffer
		}
		if len(data) == maxReceived {
			break // it may be cut, and then its header does not tell where the next one begins
		}
	}
	return success
}
