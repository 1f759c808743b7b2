//go:build !windows

package main

// #include "shim.h"
import "C"

import (
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/wincode"
	"github.com/opendivert/divert/packet"
)

// Sizes of address arrays in bytes (specification: api.md 7 and 8).
const (
	minAddrs = packet.AddressSize
	maxAddrs = 255 * packet.AddressSize
)

//export divertOpen
func divertOpen(text *C.char, n C.size_t, layer C.UINT32, priority C.INT16, flags C.UINT64, extended C.BOOL, segments, hang C.int, out *C.uintptr_t) C.DWORD {
	room()
	C.divert_prepare_handlers()
	if text == nil {
		return C.DWORD(invalidParameter)
	}
	if result := readyForOrders(); result != success {
		return C.DWORD(result)
	}
	number, result := openHandle(string(textOf(text, n)), uint32(layer), int16(priority), uint64(flags), extended != 0, int(segments), int(hang))
	*out = C.uintptr_t(number)
	return C.DWORD(result)
}

//export divertRecv
func divertRecv(number C.uintptr_t, buf unsafe.Pointer, n C.UINT, size *C.UINT, addrs unsafe.Pointer, addrLen *C.UINT, limit C.DWORD, overlapped *C.OVERLAPPED) C.DWORD {
	room()
	h := handles.get(uintptr(number))
	if h == nil {
		return C.DWORD(invalidHandle)
	}
	if !h.received.Load() && !h.received.Swap(true) {
		C.divert_prepare_handlers() // programs have installed their handlers by their first receive call
	}
	d := delivery{buf: memory(buf, n), max: 1}
	switch {
	case addrLen != nil:
		if *addrLen < minAddrs || *addrLen > maxAddrs || addrs == nil {
			return C.DWORD(invalidParameter)
		}
		d.addrs = memory(addrs, *addrLen)
		d.max = int(*addrLen) / packet.AddressSize
	case addrs != nil:
		d.addrs = memory(addrs, packet.AddressSize)
	}
	if overlapped != nil {
		return C.DWORD(recvOverlapped(h, d, size, addrLen, overlapped))
	}
	var result code
	if limit == C.INFINITE {
		result = h.recv(&d)
	} else {
		result = h.recvWithin(&d, time.Duration(limit)*time.Millisecond)
	}
	report(&d, addrLen)
	*size = C.UINT(d.size)
	return C.DWORD(result)
}

//export divertDescriptor
func divertDescriptor(number C.uintptr_t, out *C.int) C.DWORD {
	room()
	h := handles.get(uintptr(number))
	if h == nil {
		return C.DWORD(invalidHandle)
	}
	fd, result := h.waitable()
	*out = C.int(fd)
	return C.DWORD(result)
}

// waitable returns a new descriptor of the program's own, a duplicate of the handle's.
func (h *handle) waitable() (int, code) {
	f := h.divert.Flags()
	switch {
	case h.closing.Load():
		return -1, badCommand
	case f&engine.FlagSendOnly != 0:
		return -1, invalidParameter
	}
	h.describing.Lock()
	defer h.describing.Unlock()
	d := h.descriptor.Load()
	if d == nil {
		var err error
		if d, err = newDescriptor(); err != nil {
			return -1, code(wincode.Of(err))
		}
		if !h.describe(d) {
			_ = unix.Close(d.fd)
			return -1, badCommand
		}
	}
	h.ending.RLock() // close must not close it meanwhile
	defer h.ending.RUnlock()
	if h.closing.Load() {
		return -1, badCommand
	}
	own, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, code(wincode.Of(os.NewSyscallError("fcntl", err)))
	}
	return own, success
}

func newDescriptor() (*descriptor, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	d := &descriptor{
		fd: fd, token: make(chan struct{}, 1), turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		told: make(chan struct{}), ended: make(chan struct{}),
	}
	d.token <- struct{}{}
	return d, nil
}

// recvOverlapped is divertRecv for an overlapped request.
func recvOverlapped(h *handle, d delivery, size *C.UINT, addrLen *C.UINT, overlapped *C.OVERLAPPED) code {
	result := h.recvOverlapped(uintptr(unsafe.Pointer(overlapped)), &d, func(d *delivery, result code) {
		report(d, addrLen)
		if result != success {
			d.size = 0
		}
		C.divert_end(overlapped, C.DWORD(result), C.DWORD(d.size))
	})
	if result != ioPending {
		report(&d, addrLen)
		*size = C.UINT(d.size)
	}
	return result
}

// report tells the caller the number of addresses, unless nothing was delivered.
func report(d *delivery, addrLen *C.UINT) {
	if addrLen != nil && d.count > 0 {
		*addrLen = C.UINT(d.count * packet.AddressSize)
	}
}

//export divertSend
func divertSend(number C.uintptr_t, buf unsafe.Pointer, n C.UINT, size *C.UINT, addrs unsafe.Pointer, addrLen C.UINT) C.DWORD {
	room()
	h := handles.get(uintptr(number))
	switch {
	case h == nil:
		return C.DWORD(invalidHandle)
	case addrLen < minAddrs || addrLen > maxAddrs || addrs == nil:
		return C.DWORD(invalidParameter)
	}
	sent, result := h.send(memory(buf, n), memory(addrs, addrLen))
	*size = C.UINT(sent)
	return C.DWORD(result)
}

//export divertCancel
func divertCancel(number C.uintptr_t, overlapped *C.OVERLAPPED) C.DWORD {
	room()
	h := handles.get(uintptr(number))
	switch {
	case h == nil:
		return C.DWORD(invalidHandle)
	case !h.turns.cancel(uintptr(unsafe.Pointer(overlapped))):
		return C.DWORD(notFound)
	}
	return C.DWORD(success)
}

//export divertSetParam
func divertSetParam(number C.uintptr_t, param C.UINT32, value C.UINT64) C.DWORD {
	room()
	h := handles.get(uintptr(number))
	if h == nil {
		return C.DWORD(invalidHandle)
	}
	return C.DWORD(h.setParam(uint32(param), uint64(value)))
}

//export divertGetParam
func divertGetParam(number C.uintptr_t, param C.UINT32, out *C.UINT64) C.DWORD {
	room()
	h := handles.get(uintptr(number))
	if h == nil {
		return C.DWORD(invalidHandle)
	}
	value, result := h.param(uint32(param))
	if result == success && out == nil {
		result = noAccess
	}
	if result == success {
		*out = C.UINT64(value)
	}
	return C.DWORD(result)
}
