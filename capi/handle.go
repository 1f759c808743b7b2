//go:build !windows

package main

import (
	"errors"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/wincode"
	"github.com/opendivert/divert/packet"
)

// handle is the object behind a handle number of a C program. Received packets that did not fit into the caller's buffer
// stay with it until the next receive call, as if they were still queued.
type handle struct {
	divert   *divert.Handle
	turns    turns
	closing  atomic.Bool
	received atomic.Bool // a receive call was made
	sendDown atomic.Bool // kept here: see shutdown

	// Makes TCP come in segments; nil if that is unwanted or impossible. Guarded by the turn, like cut.
	cutter engine.Cutter
	cut    bool // TCP comes in segments

	describing sync.Mutex // held while the descriptor is made
	descriptor atomic.Pointer[descriptor]
	ending     sync.RWMutex // held by close while it closes the descriptor

	// held are the packets of the call whose turn it is; with a descriptor, of the holder of its token.
	held struct {
		packets     [divert.MaxBatch]divert.Packet
		first, last int // packets[first:last] have been received and not delivered
		since       time.Time
	}
}

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// dialects maps the environment's wish for the extended dialect to a dialect.
var dialects = map[bool]filter.Dialect{false: filter.Strict, true: filter.Extended}

// The values of divert_segments: when TCP comes as it is on the wire; any other number means never.
const (
	segmentsIfShort = iota
	segmentsAlways
)

// openHandle opens a handle (specification: api.md 5). In the strict dialect it also refuses a filter that compiles but
// that the original's driver would refuse (api.md 5.1).
func openHandle(text string, layer uint32, priority int16, flags uint64, extended bool, segments, hang int) (uintptr, code) {
	if layer >= uint32(packet.NumLayers) {
		return 0, invalidParameter
	}
	p, err := filter.Compile(text, packet.Layer(layer), dialects[extended])
	if err == nil && !extended {
		err = (*prog.Program)(p).DriverCheck()
	}
	if err != nil {
		return 0, invalidParameter
	}
	opts := []divert.Option{
		divert.WithPriority(priority), divert.WithFlags(divert.Flag(flags)),
		engine.DropWaits().(divert.Option), // api.md 6
	}
	receives := divert.Flag(flags)&(divert.Drop|divert.SendOnly) == 0
	hasPackets := p.Layer() == divert.LayerNetwork || p.Layer() == divert.LayerForward
	if segments == segmentsAlways && hasPackets && receives {
		opts = append(opts, divert.WithSegments())
	}
	if hang != 0 && hasPackets && receives && divert.Flag(flags)&divert.Sniff == 0 {
		opts = append(opts, onHang(hang))
	}
	d, err := divert.OpenProgram(p, opts...)
	if err != nil {
		return 0, code(wincode.Of(err))
	}
	h := newHandle(d)
	if segments == segmentsIfShort && hasPackets && receives {
		h.cutter = engine.CutterOf(d)
	}
	return handles.add(h), success
}

// onHang returns the option for a value of divert_hang.
func onHang(milliseconds int) divert.Option {
	d := time.Duration(milliseconds) * time.Millisecond
	if d < 0 {
		return divert.WithDropOnHang(-d)
	}
	return divert.WithPassOnHang(d)
}

func newHandle(d *divert.Handle) *handle {
	h := &handle{divert: d}
	h.turns.interrupt = func() {
		if described := h.descriptor.Load(); described != nil {
			described.interrupt()
			return
		}
		_ = d.SetReadDeadline(past)
	}
	h.turns.resume = func() {
		if described := h.descriptor.Load(); described != nil {
			described.resume()
		}
		_ = d.SetReadDeadline(time.Time{})
	}
	return h
}

// hasData reports whether the handle's packets or events have bytes.
func (h *handle) hasData() bool {
	return h.divert.Layer() != divert.LayerFlow && h.divert.Layer() != divert.LayerSocket
}

// shutdown is WinDivertShutdown (specification: api.md 9).
func (h *handle) shutdown(how uint32) code {
	if how == 0 || how > uint32(divert.ShutdownBoth) {
		return invalidParameter
	}
	if h.closing.Load() {
		return badCommand
	}
	if divert.How(how)&divert.ShutdownSend != 0 {
		h.sendDown.Store(true)
	}
	if divert.How(how)&divert.ShutdownRecv == 0 {
		return success
	}
	return codeOf(h.divert.Shutdown(divert.ShutdownRecv))
}

// close is WinDivertClose (specification: api.md 10). Once it returns, nothing touches the memory of overlapped requests
// any more.
func (h *handle) close() code {
	h.closing.Store(true)
	h.turns.close()
	h.ending.Lock()
	if d := h.descriptor.Load(); d != nil {
		d.close(h)
	}
	h.ending.Unlock()
	h.giveBack()
	return codeOf(h.divert.Close())
}

// giveBack lets packets received and not delivered go on, unless they are too old.
func (h *handle) giveBack() {
	held := &h.held
	if !h.expired() {
		engine.GiveBack(h.divert, held.packets[held.first:held.last])
	}
	held.first, held.last = 0, 0
}

// expired reports whether the held packets have waited for at least the queue time.
func (h *handle) expired() bool {
	if h.held.first == h.held.last {
		return false
	}
	return time.Since(h.held.since) > h.divert.QueueTime()
}

// param is a parameter, WINDIVERT_PARAM (specification: api.md 1.1).
type param struct {
	set func(h *divert.Handle, value uint64) error // nil: read-only
	get func(h *divert.Handle) uint64
}

// params are the parameters by number.
var params = [...]param{
	{func(h *divert.Handle, v uint64) error { return h.SetQueueLength(asInt(v)) }, func(h *divert.Handle) uint64 { return uint64(h.QueueLength()) }},
	{func(h *divert.Handle, v uint64) error { return h.SetQueueTime(asMilliseconds(v)) }, func(h *divert.Handle) uint64 { return uint64(h.QueueTime().Milliseconds()) }},
	{func(h *divert.Handle, v uint64) error { return h.SetQueueSize(asInt(v)) }, func(h *divert.Handle) uint64 { return uint64(h.QueueSize()) }},
	{nil, func(*divert.Handle) uint64 { major, _ := divert.Version(); return uint64(major) }},
	{nil, func(*divert.Handle) uint64 { _, minor := divert.Version(); return uint64(minor) }},
}

// asInt and asMilliseconds return the value of a parameter; a value far out of every range stays out of range.
func asInt(v uint64) int                    { return int(min(v, math.MaxInt32)) }
func asMilliseconds(v uint64) time.Duration { return time.Duration(asInt(v)) * time.Millisecond }

// setParam and param are WinDivertSetParam and WinDivertGetParam (specification: api.md 11).
func (h *handle) setParam(number uint32, value uint64) code {
	switch {
	case h.closing.Load():
		return badCommand
	case number >= uint32(len(params)) || params[number].set == nil:
		return invalidParameter
	}
	return codeOf(params[number].set(h.divert, value))
}

func (h *handle) param(number uint32) (uint64, code) {
	switch {
	case h.closing.Load():
		return 0, badCommand
	case number >= uint32(len(params)):
		return 0, invalidParameter
	}
	return params[number].get(h.divert), success
}

// interrupted reports whether a receive call ended because it was woken, not because of the handle.
func interrupted(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
