//go:build !linux && !windows

package main

import "sync"

// gate makes one thread wait until it is opened. The zero gate is closed.
type gate struct {
	once sync.Once
	c    chan struct{}
}

func (g *gate) channel() chan struct{} {
	g.once.Do(func() { g.c = make(chan struct{}, 1) })
	return g.c
}

// open lets the waiting goroutine, or the next one to wait, pass once.
func (g *gate) open() { g.channel() <- struct{}{} }

// pass waits until the gate is open, and closes it.
func (g *gate) pass() { <-g.channel() }
