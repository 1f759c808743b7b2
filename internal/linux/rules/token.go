//go:build linux

package rules

import (
	"fmt"
	"sync"

	"github.com/opendivert/divert/internal/linux/queue"
)

// A handle's token tells that the handle is alive: a packet queue that no rule leads to. It takes CAP_NET_ADMIN in the network
// namespace to bind a queue, only one socket can have bound it, and the kernel removes it with its process. The handle's rules
// name the queue and the port of its socket, and the number of bytes that the queue copies is derived from the handle's id, so
// that the queue of another program is not taken for a token.

// token is the token of a handle of this process.
type token struct {
	*queue.Queue
	port uint32
}

// newToken binds a token in the namespace of the calling thread.
func newToken(id uint64) (*token, error) {
	// Packets that somebody else's rule leads here pass.
	q, err := queue.Open(queue.Options{Snap: tokenSnap(id), FailOpen: true, RcvBuf: 4096})
	if err != nil {
		return nil, fmt.Errorf("the handle's sign of life: %w", err)
	}
	port, err := q.Port()
	if err != nil {
		q.Close()
		return nil, fmt.Errorf("the handle's sign of life: %w", err)
	}
	own.enter(ownHandle{id, port})
	return &token{q, port}, nil
}

// tokenSnap is the number of bytes that the token of a handle copies: one that no other program asks for.
func tokenSnap(id uint64) int { return 0x100 + int(id%0x7e00) }

// own are the handles of this process: those that are open, and the last that were closed, because an observer may
// hear of a handle when it is closed already.
var own ownHandles

type ownHandles struct {
	mu     sync.Mutex
	there  map[ownHandle]bool
	recent [1024]ownHandle // a ring
	next   int
}

// ownHandle is a handle by its id and its token's port.
type ownHandle struct {
	id   uint64
	port uint32
}

func (h *ownHandles) enter(o ownHandle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.there == nil {
		h.there = map[ownHandle]bool{}
	}
	h.there[o] = true
}

// leave keeps a closed handle for a while.
func (h *ownHandles) leave(o ownHandle) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.there, h.recent[h.next])
	h.recent[h.next] = o
	h.next = (h.next + 1) % len(h.recent)
}

func (h *ownHandles) has(o ownHandle) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.there[o]
}

// living tells which handles are alive. It belongs to one goroutine on a thread of the namespace.
type living struct {
	bound  map[uint16]queue.Binding // nil if it cannot be read
	prober *queue.Prober            // nil until it is needed
}

// census begins to find out which owners are alive. It must come after the owners in question have been read: a token is there
// before its rules are.
func census() *living {
	bound, _ := queue.Bindings() // without it each queue is asked for
	return &living{bound: bound}
}

func (l *living) close() {
	if l.prober != nil {
		l.prober.Close()
	}
}

// alive reports whether a handle's token is there. When in doubt the handle counts as alive.
func (l *living) alive(o Owner) bool {
	if b, ok := l.bound[o.Queue]; ok {
		return b == queue.Binding{Port: o.Port, Snap: tokenSnap(o.ID)}
	}
	if l.prober == nil {
		var err error
		if l.prober, err = queue.NewProber(); err != nil {
			return true
		}
	}
	return !l.prober.Free(o.Queue)
}

// certain reports whether the kernel has confirmed that the queue is a handle's token, and not another program's queue.
func (l *living) certain(o Owner) bool {
	return l.bound[o.Queue] == queue.Binding{Port: o.Port, Snap: tokenSnap(o.ID)}
}
