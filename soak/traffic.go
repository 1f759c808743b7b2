//go:build linux

package main

import (
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"time"
)

// flow is a stream of numbered datagrams from one socket to another.
type flow struct {
	from net.Conn
	to   net.PacketConn

	mu       sync.Mutex
	next     uint64
	under    map[uint64]time.Time // datagrams in flight, with their sending times
	arrived  uint64
	doubled  uint64
	overtook uint64 // arrived after a later one
	top      uint64
	lost     []time.Time // sending times of lost datagrams
	refused  []time.Time // by the sending socket
}

// patience is how long a datagram may be in flight: longer than any handle keeps one.
const patience = 20 * time.Second

func (f *flow) send() {
	f.mu.Lock()
	n := f.next
	f.next++
	at := time.Now()
	f.under[n] = at
	f.mu.Unlock()
	if _, err := f.from.Write(binary.BigEndian.AppendUint64(make([]byte, 0, 24), n)); err != nil {
		f.mu.Lock()
		delete(f.under, n)
		f.refused = append(f.refused, at)
		f.mu.Unlock()
	}
}

// receive reads until the socket is closed.
func (f *flow) receive() {
	b := make([]byte, 64)
	for {
		n, _, err := f.to.ReadFrom(b)
		if err != nil {
			return
		}
		if n != 8 {
			continue
		}
		number := binary.BigEndian.Uint64(b)
		f.mu.Lock()
		if _, ok := f.under[number]; ok {
			delete(f.under, number)
			f.arrived++
		} else {
			f.doubled++
		}
		if number < f.top {
			f.overtook++
		}
		f.top = max(f.top, number)
		f.mu.Unlock()
	}
}

// age gives up packets that have been in flight for longer than patience.
func (f *flow) age(now time.Time, patience time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, at := range f.under {
		if now.Sub(at) > patience {
			delete(f.under, n)
			f.lost = append(f.lost, at)
		}
	}
}

// window is a period in which datagrams may be lost.
type window struct {
	from, to time.Time
	why      string
	at       time.Time // when it happened
}

// explain sorts losses by the windows that contain them; it returns those outside all windows as left.
func explain(lost []time.Time, windows []window) (by map[string]int, left []time.Time) {
	by = make(map[string]int)
	for _, at := range lost {
		i := slices.IndexFunc(windows, func(w window) bool { return !at.Before(w.from) && !at.After(w.to) })
		if i < 0 {
			left = append(left, at)
			continue
		}
		by[windows[i].why]++
	}
	return by, left
}
