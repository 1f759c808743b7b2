//go:build !windows

package main

import (
	"errors"
	"net"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// delivery is the caller's memory, to which a receive call delivers.
type delivery struct {
	buf   []byte // for the packets, back to back; may be nil
	addrs []byte // for their addresses in the C layout; nil if unwanted
	max   int    // greatest number of packets

	atOnce bool // the call fails with timedOut instead of waiting for a packet

	size  int // bytes delivered
	count int // packets delivered, a truncated one included
}

// recv receives into d for a call that waits in its thread.
func (h *handle) recv(d *delivery) code {
	receiving.enter()
	defer receiving.leave()
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

// recvWithin is recv with a limit for the wait, 0 for none at all; beyond it recvWithin fails with timedOut.
func (h *handle) recvWithin(d *delivery, limit time.Duration) code {
	receiving.enter()
	defer receiving.leave()
	d.atOnce = true
	if result := h.recvNow(d); result != timedOut || limit <= 0 {
		return result
	}
	d.atOnce = false
	c := new(turn) // not from places: the timer may fire late
	immediate, ok := h.turns.enter(c)
	if !ok {
		return badCommand
	}
	timer := time.AfterFunc(limit, func() { h.turns.expire(c) })
	defer timer.Stop()
	result := operationAborted
	if immediate || h.turns.wait(c) {
		result = h.receive(c, d)
		h.turns.leave(c)
	}
	if result == operationAborted && h.turns.hasExpired(c) {
		return timedOut
	}
	return result
}

// recvNow is recv that fails with timedOut instead of waiting, even for its turn.
func (h *handle) recvNow(d *delivery) code {
	c := places.Get().(*turn)
	defer places.Put(c)
	c.cancelled = false
	immediate, ok := h.turns.enter(c)
	switch {
	case !ok:
		return badCommand
	case immediate:
	case h.turns.abandon(c):
		return timedOut
	case !h.turns.wait(c): // the call now has its turn, or was cancelled
		return operationAborted
	}
	defer h.turns.leave(c)
	return h.receive(c, d)
}

// recvOverlapped receives into d for an overlapped request. If it cannot finish at once it returns ioPending, and calls
// done when the request is complete, before the handle closes.
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

// ready reports whether receiving need not wait. The caller must have its turn.
func (h *handle) ready() bool {
	if d := h.descriptor.Load(); d != nil {
		return d.there()
	}
	return h.held.first < h.held.last && !h.expired() || h.divert.Flags()&divert.SendOnly != 0
}

// receive waits for packets and delivers them. The call must have its turn.
func (h *handle) receive(c *turn, d *delivery) code {
	held := &h.held
	h.cutFor(d)
	if described := h.descriptor.Load(); described != nil {
		return h.receiveDescribed(c, d, described)
	}
	if h.expired() {
		held.first, held.last = 0, 0
	}
	for held.first == held.last {
		n, err := h.more(d)
		switch {
		case err == nil:
			held.first, held.last = 0, n
			h.again()
		case err == engine.ErrInterrupted:
			return timedOut
		case interrupted(err):
			if !h.turns.goOn(c) {
				return operationAborted
			}
			if described := h.descriptor.Load(); described != nil {
				return h.receiveDescribed(c, d, described)
			}
		default:
			return receiveCode(err)
		}
	}
	result := h.deliver(d)
	if held.first < held.last {
		held.since = time.Now()
	}
	return result
}

// cutFor makes TCP come in segments from now on if d has no room for packets longer than on the wire. If that is
// impossible, such packets are received cut. The call must have its turn.
func (h *handle) cutFor(d *delivery) {
	if h.cutter == nil || h.cut || len(d.buf) == 0 || len(d.buf) >= maxReceived {
		return
	}
	if h.cutter.Cut() != nil {
		h.cutter = nil
		return
	}
	h.cut = true
	if h.descriptor.Load() == nil { // else the taker of the token does it
		h.again()
	}
}

// again makes the held packets from before the change to segments pass the handle once more.
func (h *handle) again() {
	if held := &h.held; h.cut && held.first < held.last {
		held.last = held.first + h.cutter.Again(held.packets[held.first:held.last])
	}
}

// more receives packets for d, and holds them. Packets that do not fit into its buffer stay held, and are given back when
// the handle closes.
func (h *handle) more(d *delivery) (int, error) {
	if d.atOnce {
		return engine.Poll(h.divert, h.held.packets[:d.max])
	}
	n, err := h.divert.RecvBatch(h.held.packets[:d.max])
	room() // the stack may have shrunk during a long wait
	return n, err
}

// receiveCode returns the code of an error of a receive call.
func receiveCode(err error) code {
	if errors.Is(err, net.ErrClosed) {
		return operationAborted // the handle was open when the call began
	}
	return codeOf(err)
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
			return insufficientBuffer // the packet is lost without a trace
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
			break // the packet may be cut, and then its header does not give the start of the next
		}
	}
	return success
}
