//go:build linux

package detour

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/packet"
)

// led is a detour of a host with its listeners. It knows its own sockets by their cookies, so that this process can be a client.
type led struct {
	*Detour
	host      *lab.Host
	listeners []net.Listener
}

func lead(t *testing.T, h *lab.Host, text string) *led { return leadSome(t, h, text, 100) }

func leadSome(t *testing.T, h *lab.Host, text string, most int) *led {
	t.Helper()
	if err := Connects.Err(); err != nil {
		t.Skip(err)
	}
	d := &led{host: h}
	cfg := Config{TCP: atConnect(t, text, packet.ProtocolTCP), Max: most, BySocket: true, RefuseOthers: true}
	for i := range cfg.Ports {
		four, err := h.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Ports[i] = four.Addr().(*net.TCPAddr).AddrPort().Port()
		six, err := h.Listen("tcp", fmt.Sprintf("[::1]:%d", cfg.Ports[i]))
		if err != nil {
			t.Fatal(err)
		}
		d.listeners = append(d.listeners, four, six)
	}
	if err := h.Do(func() (err error) { d.Detour, err = Open(cfg); return err }); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		for _, l := range d.listeners {
			l.Close()
		}
	})
	return d
}

// client is a socket of TCP.
type client struct{ fd int }

// connect makes a socket on a host and connects it.
func connect(t *testing.T, h *lab.Host, to unix.Sockaddr, prepare func(fd int) error) (c *client, err error) {
	t.Helper()
	c = &client{fd: -1}
	t.Cleanup(func() { _ = c.close() })
	family := unix.AF_INET
	if _, ok := to.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	if e := h.Do(func() (e error) {
		if c.fd, e = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); e != nil {
			return e
		}
		if prepare != nil {
			if e := prepare(c.fd); e != nil {
				return e
			}
		}
		err = unix.Connect(c.fd, to)
		return nil
	}); e != nil {
		t.Fatal(e)
	}
	return c, err
}

// close closes it, once.
func (c *client) close() (err error) {
	if c.fd >= 0 {
		err = unix.Close(c.fd)
	}
	c.fd = -1
	return err
}

// ends returns the results of getsockname and getpeername, mapped addresses as they are.
func (c *client) ends(t *testing.T) (local, peer netip.AddrPort) {
	t.Helper()
	name := func(f func(int) (unix.Sockaddr, error)) netip.AddrPort {
		sa, err := f(c.fd)
		if err != nil {
			t.Fatal(err)
		}
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
		}
		t.Fatalf("%T", sa)
		return netip.AddrPort{}
	}
	return name(unix.Getsockname), name(unix.Getpeername)
}

// alias returns the end of the listener.
func (c *client) alias(t *testing.T, d *led) (at netip.AddrPort, in net.Conn) {
	t.Helper()
	local, _ := c.ends(t)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		for _, l := range d.listeners {
			_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Millisecond))
			in, err := l.Accept()
			if err != nil {
				continue
			}
			t.Cleanup(func() { in.Close() })
			if from := in.RemoteAddr().(*net.TCPAddr).AddrPort(); from.Port() != local.Port() {
				t.Fatalf("%v has come, want port %d", from, local.Port())
			}
			return l.Addr().(*net.TCPAddr).AddrPort(), in
		}
	}
	t.Fatal("no listener has been connected to")
	return at, nil
}

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

func sockaddr(t *testing.T, text string) unix.Sockaddr {
	t.Helper()
	to := netip.MustParseAddrPort(text)
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
}

// TestLed: the aim of a socket is found by its two ends, and getpeername returns it; when the application closes the socket, the
// time is noted.
func TestLed(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := lead(t, pair.A, "tcp.DstPort == 7")
	for _, row := range []struct{ to, peer, aim string }{
		{"10.77.0.2:7 from 10.77.0.1", "10.77.0.2:7", "10.77.0.2:7"},
		{"[fd77::2]:7 from fd77::1", "[fd77::2]:7", "[fd77::2]:7"},
		{"10.77.0.2:7", "10.77.0.2:7", "10.77.0.2:7"},
		{"[fd77::2]:7", "[fd77::2]:7", "[fd77::2]:7"},
		{"[::ffff:10.77.0.2]:7", "[::ffff:10.77.0.2]:7", "10.77.0.2:7"},
		{"127.0.0.1:7", "127.0.0.1:7", "127.0.0.1:7"},
		{"[::1]:7", "[::1]:7", "[::1]:7"},
		{"[2001:db8:1:2:3:4:5:6]:7", "[2001:db8:1:2:3:4:5:6]:7", "[2001:db8:1:2:3:4:5:6]:7"},
		{"0.0.0.0:7", "127.0.0.1:7", "127.0.0.1:7"},
		{"[::]:7", "[::1]:7", "[::1]:7"},
		{"[::ffff:0.0.0.0]:7", "[::ffff:127.0.0.1]:7", "127.0.0.1:7"},
		{"192.0.2.77:7", "192.0.2.77:7", "192.0.2.77:7"},
	} {
		to, from, bound := strings.Cut(row.to, " from ")
		c, err := connect(t, pair.A, sockaddr(t, to), func(fd int) error {
			if !bound {
				return nil
			}
			return unix.Bind(fd, sockaddr(t, netip.AddrPortFrom(netip.MustParseAddr(from), 0).String()))
		})
		if err != nil {
			t.Errorf("%s: %v", row.to, err)
			continue
		}
		local, peer := c.ends(t)
		if bound && local.Addr().String() != from {
			t.Errorf("%s: getsockname says %v", row.to, local)
		}
		if peer.String() != row.peer {
			t.Errorf("%s: getpeername says %v", row.to, peer)
		}
		at, _ := c.alias(t, d)
		local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
		a, ok, err := d.Find(local, at)
		if err != nil || !ok || a.Dst.String() != row.aim || a.Process != uint32(unix.Getpid()) {
			t.Errorf("%s: found %+v, %t, %v", row.to, a, ok, err)
		}
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
		if released, err := d.Released(); err != nil || released[a.Cookie] == 0 {
			t.Errorf("%s: released %v, %v", row.to, released, err)
		}
		if again, ok, err := d.Find(local, at); err != nil || !ok || again != a {
			t.Errorf("%s: after the end found %+v, %t, %v", row.to, again, ok, err)
		}
		d.Forget(a.Cookie)
		if again, ok, err := d.Find(local, at); err != nil || ok {
			t.Errorf("%s: forgotten and found %+v, %v", row.to, again, err)
		}
	}
}

// TestNotLed: connects that are left alone, and connects that are refused.
func TestNotLed(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, h := range []*lab.Host{pair.A, pair.B} {
		e, err := h.Echo("tcp", ":7")
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
	}
	d := lead(t, pair.A, "tcp.DstPort == 7 or tcp.DstPort == 8 and processId != 0")
	device := func(fd int) error { return unix.BindToDevice(fd, pair.A.Links()[0].Name()) }
	own := func(fd int) error { _, err := d.SpareSocket(fd); return err }
	linkLocal := &unix.SockaddrInet6{Port: 7, Addr: netip.MustParseAddr("fe80::1").As16(), ZoneId: uint32(pair.A.Links()[0].Index())}
	for _, row := range []struct {
		name    string
		host    *lab.Host
		to      unix.Sockaddr
		prepare func(int) error
		err     error
	}{
		{"another namespace", pair.B, sockaddr(t, "10.77.0.1:7"), nil, nil},
		{"a socket of the program", pair.A, sockaddr(t, "10.77.0.2:7"), own, nil},
		{"the filter does not match", pair.A, sockaddr(t, "10.77.0.2:9"), nil, unix.ECONNREFUSED},
		{"bound to a device", pair.A, sockaddr(t, "10.77.0.2:7"), device, unix.ENETUNREACH},
		{"link-local", pair.A, linkLocal, nil, unix.EADDRNOTAVAIL},
		{"multicast", pair.A, sockaddr(t, "224.0.0.1:7"), nil, unix.ENETUNREACH},
	} {
		c, err := connect(t, row.host, row.to, row.prepare)
		if !errors.Is(err, row.err) {
			t.Errorf("%s: %v, want %v", row.name, err, row.err)
		}
		if err != nil {
			continue
		}
		if local, _ := c.ends(t); local.Addr().IsLoopback() {
			t.Errorf("%s: led, from %v", row.name, local)
		}
	}
	if c := d.Counts(); c.Spared != 1 || c.Full != 0 {
		t.Errorf("%+v", c)
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	c, err := connect(t, pair.A, sockaddr(t, "10.77.0.2:7"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if local, _ := c.ends(t); local.Addr().IsLoopback() {
		t.Errorf("led after Detach, from %v", local)
	}
}

// TestSpareProcess: the connects of a process that is spared, and of those that descend from it, pass.
func TestSpareProcess(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	e, err := pair.B.Echo("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	d := lead(t, pair.A, "tcp.DstPort == 7")
	for _, id := range []int{unix.Getpid(), unix.Getppid()} {
		if err := d.SpareProcess(uint32(id)); errors.Is(err, ErrNumbers) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		for _, led := range []bool{false, true} {
			c, err := connect(t, pair.A, sockaddr(t, "10.77.0.2:7"), nil)
			if err != nil {
				t.Fatal(err)
			}
			if local, _ := c.ends(t); local.Addr().IsLoopback() != led {
				t.Errorf("process %d: from %v, want led %t", id, local, led)
			}
			d.UnspareProcess(uint32(id))
		}
	}
}

// TestFull: where there is no room for an aim, the connect is refused; once one is forgotten there is.
func TestFull(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := leadSome(t, pair.A, "tcp.DstPort == 7", 1)
	c, err := connect(t, pair.A, sockaddr(t, "10.77.0.2:7"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := connect(t, pair.A, sockaddr(t, "10.77.0.2:7"), nil); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the second: %v", err)
	}
	if n := d.Counts(); n.Full != 1 {
		t.Errorf("%+v", n)
	}
	local, _ := c.ends(t)
	at, _ := c.alias(t, d)
	a, ok, err := d.Find(local, at)
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	d.Forget(a.Cookie)
	if _, err := connect(t, pair.A, sockaddr(t, "10.77.0.2:7"), nil); err != nil {
		t.Errorf("the third: %v", err)
	}
}

// TestTwoDetours: one detour leaves alone the connects that another has led to its listener, and each finds its own aims.
func TestTwoDetours(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	first, second := lead(t, pair.A, "tcp.DstPort == 7"), lead(t, pair.A, "tcp")
	for to, d := range map[string]*led{"10.77.0.2:7": first, "[fd77::2]:7": first, "10.77.0.2:8": second, "[::1]:8": second} {
		c, err := connect(t, pair.A, sockaddr(t, to), nil)
		if err != nil {
			t.Fatal(err)
		}
		local, peer := c.ends(t)
		at, _ := c.alias(t, d)
		if a, ok, err := d.Find(local, at); err != nil || !ok || a.Dst != peer || peer.String() != to {
			t.Errorf("%s: found %+v, %t, %v; getpeername says %v", to, a, ok, err, peer)
		}
	}
}

// TestOtherPrograms: programs of others at the same hooks stay, and are asked too.
func TestOtherPrograms(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	if err := Connects.Err(); err != nil {
		t.Skip(err)
	}
	root, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Dir.Close()
	attach := func() (calls func() uint64, id ebpf.ProgramID) {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "divert_test", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
		if err != nil {
			t.Fatal(err)
		}
		h := cgprog.Hook{Name: "connect4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet4Connect}
		p, err := cgprog.Load("divert_test", h, asm.Instructions{
			asm.LoadMapValue(asm.R1, 0, 0).WithReference("calls"), asm.Mov.Imm(asm.R2, 1), asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0),
			asm.Mov.Imm(asm.R0, cgprog.Allow), asm.Return(),
		}, map[string]*ebpf.Map{"calls": m})
		if err != nil {
			t.Fatal(err)
		}
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(root.Dir.Fd()), Program: p, Attach: h.Attach})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close(); p.Close(); m.Close() })
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ = info.ID()
		return func() (n uint64) {
			if err := m.Lookup(uint32(0), &n); err != nil {
				t.Fatal(err)
			}
			return n
		}, id
	}
	before, firstID := attach()
	d := lead(t, pair.A, "tcp.DstPort == 7")
	behind, lastID := attach()
	n, k := before(), behind()
	c, err := connect(t, pair.A, sockaddr(t, "10.77.0.2:7"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.alias(t, d)
	if before() == n || behind() == k {
		t.Error("one of the other programs was not asked")
	}
	if err := d.Detach(); err != nil {
		t.Fatal(err)
	}
	attached, err := link.QueryPrograms(link.QueryOptions{Target: int(root.Dir.Fd()), Attach: ebpf.AttachCGroupInet4Connect})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []ebpf.ProgramID{firstID, lastID} {
		found := false
		for _, a := range attached.Programs {
			found = found || a.ID == id
		}
		if !found {
			t.Errorf("program %d of others is gone", id)
		}
	}
}
