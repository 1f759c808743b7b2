//go:build !windows

package main

// #include "shim.h"
import "C"

import (
	"encoding/binary"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/opendivert/divert/internal/wincode"
)

// order is a call that a goroutine makes for a thread, which may be in a signal handler. Its layout is that of signals.c.
type order struct {
	handle    uint64
	call, how uint32
	answer    uint64 // address of the waiting thread's answer, 0 if it does not wait
}

const orderSize = 24

// The calls.
const (
	orderShutdown = C.DIVERT_ORDER_SHUTDOWN
	orderClose    = C.DIVERT_ORDER_CLOSE
)

// The numbers of divert_segments are those of handle.go.
var (
	_ [segmentsIfShort - C.DIVERT_SEGMENTS_IF_SHORT]struct{}
	_ [segmentsAlways - C.DIVERT_SEGMENTS_ALWAYS]struct{}
)

// takeOrders makes the pipe of the orders and serves it for good.
var takeOrders = sync.OnceValue(func() error {
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return err
	}
	go serve(os.NewFile(uintptr(ends[0]), "orders"))
	C.divert_take_orders(C.int(ends[1]))
	return nil
})

// serve carries out the orders from a pipe. Each has a goroutine of its own, since one may wait for a thread that is in a
// handler.
func serve(pipe io.Reader) {
	var b [orderSize]byte
	for {
		if _, err := io.ReadFull(pipe, b[:]); err != nil {
			return // the program has closed a descriptor that is not its own
		}
		o := order{
			handle: binary.NativeEndian.Uint64(b[0:]), call: binary.NativeEndian.Uint32(b[8:]),
			how: binary.NativeEndian.Uint32(b[12:]), answer: binary.NativeEndian.Uint64(b[16:]),
		}
		go func() {
			result := o.do()
			if o.answer != 0 {
				C.divert_answer(C.UINT64(o.answer), C.DWORD(result))
			}
		}()
	}
}

// do makes the call.
func (o order) do() code {
	if o.call == orderClose {
		if h := handles.remove(uintptr(o.handle)); h != nil {
			return h.close()
		}
		return invalidHandle
	}
	if h := handles.get(uintptr(o.handle)); h != nil {
		return h.shutdown(o.how)
	}
	return invalidHandle
}

// readyForOrders returns the code of the error that keeps the library from taking orders.
func readyForOrders() code { return code(wincode.Of(takeOrders())) }
