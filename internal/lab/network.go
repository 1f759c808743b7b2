//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// Network is a set of hosts. Close it after its sockets, handles and child processes. Several goroutines may call its
// methods.
type Network struct {
	mu     sync.Mutex
	hosts  []*Host
	links  int // links made so far, for their MAC addresses
	closed bool
}

// New returns an empty network, or an error that wraps ErrUnavailable.
func New() (*Network, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	return &Network{}, nil
}

// AddHost adds a host with only its loopback device, up.
func (n *Network) AddHost(name string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, fmt.Errorf("lab: network: %w", os.ErrClosed)
	}
	h, err := newHost(name)
	if err == nil {
		n.hosts = append(n.hosts, h)
	}
	return h, err
}

// AddRouter adds a host that forwards IPv4 and IPv6.
func (n *Network) AddRouter(name string) (*Host, error) {
	h, err := n.AddHost(name)
	if err != nil {
		return nil, err
	}
	return h, errors.Join(
		h.Sysctl("net.ipv4.ip_forward", "1"),
		h.Sysctl("net.ipv6.conf.all.forwarding", "1"),
		h.Sysctl("net.ipv6.conf.default.forwarding", "1"))
}

// Hosts returns the hosts in the order in which they were added.
func (n *Network) Hosts() []*Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]*Host(nil), n.hosts...)
}

// nextLink counts links.
func (n *Network) nextLink() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links++
	return n.links
}

// Close releases all namespaces, the last one first; a second call does nothing. The kernel removes a namespace with
// its links in the background, when no socket, thread or process is in it.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	var errs []error
	for i := len(n.hosts) - 1; i >= 0; i-- {
		errs = append(errs, n.hosts[i].close())
	}
	n.hosts = nil
	return errors.Join(errs...)
}
