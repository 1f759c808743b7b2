//go:build linux

package rules

import (
	"sync"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// While a process has a handle open it keeps a socket for changes of rules, because closing one takes long; see conn.end.

// sockets are the sockets that are kept, by the numbers of their namespaces.
var sockets = keeper{of: map[uint64]*kept{}}

type keeper struct {
	mu sync.Mutex
	of map[uint64]*kept
}

// kept is the state that handles of a namespace share.
type kept struct {
	users int   // entries that are open
	idle  *conn // nil if somebody works with it, or none was needed yet
}

// begin keeps sockets of a namespace until end.
func (k *keeper) begin(network uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of[network] == nil {
		k.of[network] = &kept{}
	}
	k.of[network].users++
}

// end undoes one begin.
func (k *keeper) end(network uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	here := k.of[network]
	if here.users--; here.users > 0 {
		return
	}
	delete(k.of, network)
	if here.idle != nil {
		here.idle.end()
	}
}

// take returns the kept socket of a namespace, nil if there is none.
func (k *keeper) take(network uint64) *conn {
	k.mu.Lock()
	here := k.of[network]
	if here == nil || here.idle == nil {
		k.mu.Unlock()
		return nil
	}
	c := here.idle
	here.idle = nil
	k.mu.Unlock()
	if c.forget() != nil {
		c.end()
		return nil
	}
	return c
}

// put keeps a socket, and reports whether it did.
func (k *keeper) put(c *conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	here := k.of[c.network]
	if here == nil || here.idle != nil {
		return false
	}
	here.idle = c
	return true
}

// forget throws away answers that nobody has waited for: a transaction may fail for several reasons, and the kernel reports
// each.
func (c *conn) forget() error {
	return nfnl.Discard(c.fd)
}
