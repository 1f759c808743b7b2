//go:build linux

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is one network namespace: a host or a router of a Network. Several goroutines may call its methods.
type Host struct {
	name string

	mu     sync.RWMutex // held for reading while ns is in use
	ns     *os.File
	nl     *netlink.Handle
	links  []*Link
	addrs  []netip.Addr
	closed bool
}

// Name returns the host's name, which only the lab knows.
func (h *Host) Name() string { return h.name }

// String returns the host's name.
func (h *Host) String() string { return h.name }

// newHost makes a namespace with the loopback device up and settings that are independent of the machine's.
func newHost(name string) (*Host, error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, fmt.Errorf("lab: host %s: %w", name, err)
	}
	h := &Host{name: name, ns: ns}
	if err := h.prepare(); err != nil {
		h.close()
		return nil, fmt.Errorf("lab: host %s: %w", name, err)
	}
	tracef("host %s", name)
	return h, nil
}

// hostSysctls give every host the same initial settings. A new namespace copies the machine's IPv4 settings
// (Documentation/admin-guide/sysctl/net.rst, devconf_inherit_init_net), and a machine may forward or filter by reverse
// path. Duplicate address detection and router solicitation are off because a lab's addresses are right and must work
// at once.
var hostSysctls = []struct{ name, value string }{
	{"net.ipv4.ip_forward", "0"}, // first: writing it resets others
	{"net.ipv4.conf.all.rp_filter", "0"},
	{"net.ipv4.conf.default.rp_filter", "0"},
	{"net.ipv4.conf.all.accept_local", "0"},
	{"net.ipv4.conf.default.accept_local", "0"},
	{"net.ipv6.conf.all.disable_ipv6", "0"},
	{"net.ipv6.conf.default.disable_ipv6", "0"},
	{"net.ipv6.conf.all.accept_dad", "0"},
	{"net.ipv6.conf.default.accept_dad", "0"},
	{"net.ipv6.conf.default.accept_ra", "0"},
	{"net.ipv6.conf.default.router_solicitations", "0"},
}

func (h *Host) prepare() error {
	for _, s := range hostSysctls {
		if err := h.Sysctl(s.name, s.value); err != nil {
			return err
		}
	}
	nl, err := h.Netlink()
	if err != nil {
		return err
	}
	h.nl = nl
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	return nl.LinkSetUp(lo)
}

// errClosed is the error of a host's methods after its network has been closed.
func (h *Host) errClosed() error { return fmt.Errorf("lab: host %s: %w", h.name, os.ErrClosed) }

// withNS lends the namespace's descriptor to f; it stays open until f returns.
func (h *Host) withNS(f func(fd int) error) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.closed {
		return h.errClosed()
	}
	return f(int(h.ns.Fd()))
}

// Do runs f on a thread inside the host's network namespace, waits for it and returns its error. Sockets and files of
// /proc/sys/net that f opens belong to the host for good.
//
// f runs on its own goroutine and thread. Goroutines that f starts with `go` are not in the namespace: use Go for that.
// A panic or runtime.Goexit in f continues in the caller, so testing.T.Fatal works inside f.
func (h *Host) Do(f func() error) error {
	enter := func() error {
		return h.withNS(func(fd int) error {
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("lab: host %s: enter namespace: %w", h.name, os.NewSyscallError("setns", err))
			}
			return nil
		})
	}
	return onThread(enter, f)
}

// Go runs f as Do does, without waiting. The channel yields f's error once, when f has returned, and
// need not be read.
func (h *Host) Go(f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("lab: goroutine ended without returning")
		defer func() { done <- err }()
		err = h.Do(f)
	}()
	return done
}

// NetNS returns a new descriptor of the host's network namespace, for setns(2) or netlink's
// IFLA_NET_NS_FD. The caller closes it; until then it keeps the namespace alive.
func (h *Host) NetNS() (*os.File, error) {
	var dup *os.File
	err := h.withNS(func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		dup = os.NewFile(uintptr(n), "netns:"+h.name)
		return nil
	})
	return dup, err
}

// Netlink returns a new rtnetlink, netfilter, xfrm and generic netlink handle of the host's namespace, with the
// families that the kernel has. The caller closes it.
func (h *Host) Netlink() (*netlink.Handle, error) {
	var handle *netlink.Handle
	err := h.Do(func() (err error) {
		handle, err = netlink.NewHandle(netlinkFamilies()...)
		return err
	})
	return handle, err
}

// netlinkFamilies lists the families for which a handle must have a socket: for any other it would silently open a
// socket in the namespace of the requesting thread.
var netlinkFamilies = sync.OnceValue(func() []int {
	var have []int
	for _, family := range []int{unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER, unix.NETLINK_XFRM, unix.NETLINK_GENERIC} {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
		if err == nil {
			have = append(have, family)
			unix.Close(fd)
		}
	}
	return have
})

// sysctlPath turns "net.ipv4.ip_forward" or "net/ipv4/conf/eth0.1/forwarding" into the path of its file. It fails for
// settings that are not per host.
func sysctlPath(name string) (string, error) {
	if !strings.Contains(name, "/") {
		name = strings.ReplaceAll(name, ".", "/")
	}
	if !strings.HasPrefix(name, "net/") || strings.Contains(name, "..") {
		return "", fmt.Errorf("lab: sysctl %q: %w: only net.* belongs to a network namespace", name, os.ErrInvalid)
	}
	return "/proc/sys/" + name, nil
}

// Sysctl sets a net.* setting of the host, such as "net.ipv4.ip_forward". If a device in the name has dots, write the
// whole name with slashes.
func (h *Host) Sysctl(name, value string) error {
	path, err := sysctlPath(name)
	if err != nil {
		return err
	}
	tracef("%s: sysctl %s = %s", h.name, name, value)
	return h.Do(func() error {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value)
		return errors.Join(err, f.Close())
	})
}

// SysctlValue reads a net.* setting of the host, without the final newline.
func (h *Host) SysctlValue(name string) (string, error) {
	path, err := sysctlPath(name)
	if err != nil {
		return "", err
	}
	var text []byte
	err = h.Do(func() (err error) {
		text, err = os.ReadFile(path)
		return err
	})
	return strings.TrimSuffix(string(text), "\n"), err
}

// Start starts cmd in the host's namespace; the caller waits for it. Only the network differs: the
// child sees the files of this process, so /sys/class/net still shows this process's devices.
func (h *Host) Start(cmd *exec.Cmd) error {
	tracef("%s: start %s", h.name, cmd)
	return h.Do(cmd.Start)
}

// Exec runs cmd in the host's namespace and waits for it, as exec.Cmd.Run does.
func (h *Host) Exec(cmd *exec.Cmd) error {
	if err := h.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// Links returns the host's ends of links, in order of creation.
func (h *Host) Links() []*Link {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return append([]*Link(nil), h.links...)
}

// Link returns the host's end of a link by its interface name, or nil.
func (h *Host) Link(name string) *Link {
	for _, l := range h.Links() {
		if l.name == name {
			return l
		}
	}
	return nil
}

// Addrs returns the host's addresses in the order in which the lab assigned them.
func (h *Host) Addrs() []netip.Addr {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return append([]netip.Addr(nil), h.addrs...)
}

// Addr4 returns the host's first IPv4 address, or the zero Addr.
func (h *Host) Addr4() netip.Addr { return h.firstAddr(netip.Addr.Is4) }

// Addr6 returns the host's first IPv6 address, or the zero Addr.
func (h *Host) Addr6() netip.Addr { return h.firstAddr(netip.Addr.Is6) }

func (h *Host) firstAddr(is func(netip.Addr) bool) netip.Addr {
	for _, a := range h.Addrs() {
		if is(a) {
			return a
		}
	}
	return netip.Addr{}
}

// close releases the namespace. It lives on as long as sockets, threads or processes are in it.
func (h *Host) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	if h.nl != nil {
		h.nl.Close()
	}
	tracef("close host %s", h.name)
	return h.ns.Close()
}
