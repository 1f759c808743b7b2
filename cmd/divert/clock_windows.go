package main

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	kernel32  = windows.NewLazySystemDLL("kernel32.dll")
	counter   = kernel32.NewProc("QueryPerformanceCounter")
	frequency = kernel32.NewProc("QueryPerformanceFrequency")
)

// ticks returns the present time on the clock of the timestamps: the performance counter (specification:
// api.md 2.1).
func ticks() (v int64) {
	_, _, _ = counter.Call(uintptr(unsafe.Pointer(&v))) // cannot fail since Windows XP
	return v
}

// tickLength is the length of a tick in nanoseconds.
func tickLength() float64 {
	var v int64
	_, _, _ = frequency.Call(uintptr(unsafe.Pointer(&v)))
	return 1e9 / float64(max(v, 1))
}
