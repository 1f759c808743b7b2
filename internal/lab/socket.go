//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen listens on a literal address such as "10.77.0.1:80", "[fd77::1]:0" or ":80" (no names: a lab has no resolver),
// like net.Listen, in the host's namespace. TCP is plain TCP, never multipath. A host also has its own abstract unix
// addresses ("unix", "@name").
func (h *Host) Listen(network, addr string) (l net.Listener, err error) {
	if err := checkLiteral(network, addr); err != nil {
		return nil, err
	}
	err = h.Do(func() (err error) {
		lc := net.ListenConfig{Control: onThisThread()}
		lc.SetMultipathTCP(false)
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	return l, err
}

// ListenPacket is Listen for "udp", "udp4", "udp6", "ip4:icmp" and the like.
func (h *Host) ListenPacket(network, addr string) (c net.PacketConn, err error) {
	if err := checkLiteral(network, addr); err != nil {
		return nil, err
	}
	err = h.Do(func() (err error) {
		lc := net.ListenConfig{Control: onThisThread()}
		c, err = lc.ListenPacket(context.Background(), network, addr)
		return err
	})
	return c, err
}

// Dial connects to a literal address from the host's namespace, as net.Dialer does.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return h.DialFrom(ctx, nil, network, addr)
}

// DialFrom is Dial from a given local address; nil lets the kernel choose.
func (h *Host) DialFrom(ctx context.Context, local net.Addr, network, addr string) (c net.Conn, err error) {
	if err := checkLiteral(network, addr); err != nil {
		return nil, err
	}
	err = h.Do(func() (err error) {
		d := net.Dialer{LocalAddr: local, FallbackDelay: -1, Control: onThisThread()}
		d.SetMultipathTCP(false)
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// onThisThread returns a control function for net.Dialer or net.ListenConfig that refuses sockets made on another
// thread than the caller's: such a socket would belong to another namespace.
func onThisThread() func(network, address string, c syscall.RawConn) error {
	thread := unix.Gettid()
	return func(network, address string, _ syscall.RawConn) error {
		if unix.Gettid() != thread {
			return fmt.Errorf("lab: %s socket for %s was made outside the host's namespace", network, address)
		}
		return nil
	}
}

// checkLiteral refuses addresses that package net would have to look up: it does so on other goroutines, in another
// namespace, over the machine's network.
func checkLiteral(network, addr string) error {
	kind, protocol, _ := strings.Cut(network, ":")
	var err error
	switch kind {
	case "unix", "unixgram", "unixpacket":
		return nil
	case "ip", "ip4", "ip6":
		if protocol == "" {
			return net.UnknownNetworkError(network)
		}
		if addr != "" {
			_, err = netip.ParseAddr(addr)
		}
	default:
		text := addr
		if strings.HasPrefix(addr, ":") {
			text = "0.0.0.0" + addr
		}
		_, err = netip.ParseAddrPort(text)
	}
	if err != nil {
		return fmt.Errorf("lab: address %q: %w: %w", addr, os.ErrInvalid, err)
	}
	return nil
}
