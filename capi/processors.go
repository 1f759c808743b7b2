//go:build !windows

package main

import (
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

// processors sees to it that Go's scheduler has a processor for each thread of the program that receives. A thread that waits in a system
// call keeps one until the scheduler takes it away, so that with fewer a thread that is woken may have to wait for that. The
// kernel shares out the true processors all the same.
type processors struct {
	threads  atomic.Int32 // that receive now
	provided atomic.Int32 // for so many there are processors

	mu sync.Mutex
}

// mostProcessors is how many processors the scheduler gets at most.
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

// provide makes processors for so many threads and another one, unless the environment says how many there are to be.
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
