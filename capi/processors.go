//go:build !windows

package main

import (
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

// processors gives Go's scheduler a processor for each thread of the program that receives. A thread that waits in a
// system call keeps a processor until the scheduler takes it away, so with fewer, a woken thread may have to wait for
// one. The kernel still shares out the real processors.
type processors struct {
	threads  atomic.Int32 // threads that receive now
	provided atomic.Int32 // number of threads with a processor

	mu sync.Mutex
}

// mostProcessors is the most processors that the scheduler gets.
const mostProcessors = 64

// receiving counts the threads that receive, of all handles.
var receiving processors

// enter counts a thread in.
func (p *processors) enter() {
	if n := p.threads.Add(1); n >= p.provided.Load() {
		p.provide(n)
	}
}

// leave counts a thread out.
func (p *processors) leave() { p.threads.Add(-1) }

// provide adds processors until there is one more than threads, unless the environment sets their number.
func (p *processors) provide(threads int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if threads < p.provided.Load() {
		return
	}
	n := max(min(int(threads)+1, mostProcessors), runtime.GOMAXPROCS(0))
	if n > runtime.GOMAXPROCS(0) && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(n)
	}
	if n >= mostProcessors {
		n = math.MaxInt32 // never again
	}
	p.provided.Store(int32(n))
}
