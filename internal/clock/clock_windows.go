package clock

import (
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	kernel32  = windows.NewLazySystemDLL("kernel32.dll")
	counter   = kernel32.NewProc("QueryPerformanceCounter")
	frequency = kernel32.NewProc("QueryPerformanceFrequency")
)

// Now returns the present time as timestamps have it.
func Now() (v int64) {
	_, _, _ = counter.Call(uintptr(unsafe.Pointer(&v))) // cannot fail since Windows XP
	return v
}

// tick is fixed while the system runs.
var tick = func() float64 {
	var v int64
	_, _, _ = frequency.Call(uintptr(unsafe.Pointer(&v)))
	return 1e9 / float64(max(v, 1))
}()

// Tick returns the length of a tick in nanoseconds.
func Tick() float64 { return tick }

func both() (time.Time, int64) { return time.Now(), Now() }
