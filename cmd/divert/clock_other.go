//go:build !linux && !windows

package main

import "time"

var processStart = time.Now()

// ticks returns the nanoseconds since the start of the program. There is no engine for this system, so
// there are no timestamps that it could be held against.
func ticks() int64 { return int64(time.Since(processStart)) }

// tickLength is the length of a tick in nanoseconds.
func tickLength() float64 { return 1 }
