//go:build linux

package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	vnl "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

func TestMain(m *testing.M) { lab.Main(m) }

// compile compiles a filter that names interfaces.
func compile(t *testing.T, text string) *prog.Program {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	return p.OwnInterfaces()
}

// indexes returns what stands for the names of a program.
func indexes(p *prog.Program) (list []uint32) {
	for _, n := range p.Interfaces() {
		index := uint64(0)
		for r := range n.Members.Values().Ranges {
			index = index<<16 | prog.NumberOf(r.First)
		}
		list = append(list, uint32(index))
	}
	return list
}

// waitFor waits until a program's names stand for interfaces.
func waitFor(t *testing.T, p *prog.Program, want ...uint32) {
	t.Helper()
	for begin := time.Now(); !slices.Equal(indexes(p), want); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("%s stands for %v, want %v", p, indexes(p), want)
		}
	}
}

// system is a host whose interfaces a test changes.
type system struct {
	*testing.T
	host  *lab.Host
	nl    *vnl.Handle
	peers int // made so far
}

func newSystem(t *testing.T) *system {
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	nl, err := h.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nl.Close)
	return &system{T: t, host: h, nl: nl}
}

func (s *system) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *system) watch() *Watch {
	s.Helper()
	var w *Watch
	s.ok(s.host.Do(func() (err error) { w, err = Open(); return err }))
	s.Cleanup(func() { s.ok(w.Close()) })
	return w
}

// add makes an interface with its other end, and returns the index of the first.
func (s *system) add(name string) uint32 {
	s.Helper()
	s.peers++
	s.ok(s.nl.LinkAdd(&vnl.Veth{LinkAttrs: vnl.LinkAttrs{Name: name, TxQLen: -1}, PeerName: fmt.Sprint("peer", s.peers)}))
	return uint32(s.get(name).Attrs().Index)
}

func (s *system) get(name string) vnl.Link {
	s.Helper()
	l, err := s.nl.LinkByName(name)
	s.ok(err)
	return l
}

func (s *system) rename(from, to string) { s.Helper(); s.ok(s.nl.LinkSetName(s.get(from), to)) }
func (s *system) remove(name string)     { s.Helper(); s.ok(s.nl.LinkDel(s.get(name))) }

// TestFollows: a name stands for the interface that has it, stays with one that is renamed, and goes to the next that takes it.
func TestFollows(t *testing.T) {
	s := newSystem(t)
	first := s.add("a")
	w := s.watch()
	p := compile(t, `iface == "a" or iface == "b" or iface == "lo"`)
	s.ok(w.Follow(p))
	if got := indexes(p); !slices.Equal(got, []uint32{first, 0, 1}) {
		t.Fatalf("at first it stands for %v", got)
	}
	s.rename("a", "z")
	second := s.add("b")
	waitFor(t, p, first, second, 1)
	s.rename("b", "a") // which was the other's
	waitFor(t, p, second, second, 1)
	s.rename("z", "b")
	waitFor(t, p, second, first, 1)
	s.remove("a")
	waitFor(t, p, 0, first, 1)
	third := s.add("a")
	waitFor(t, p, third, first, 1)
	s.remove("b")
	waitFor(t, p, third, 0, 1)
}

// TestFollowsSeveral: another program with a name knows what the first one does, and one that is not followed is left alone.
func TestFollowsSeveral(t *testing.T) {
	s := newSystem(t)
	w := s.watch()
	old, next := compile(t, `iface == "a"`), compile(t, `iface == "a" or iface == "b"`)
	s.ok(w.Follow(old))
	first := s.add("a")
	waitFor(t, old, first)
	s.rename("a", "z")
	s.add("sign")
	sign := compile(t, `iface == "sign"`)
	s.ok(w.Follow(sign))
	waitFor(t, sign, uint32(s.get("sign").Attrs().Index)) // then the rename is known, too
	s.ok(w.Follow(next))
	if got := indexes(next); !slices.Equal(got, []uint32{first, 0}) {
		t.Errorf("the next program has %v, want the renamed interface %d", got, first)
	}
	w.Only(next)
	second := s.add("a")
	waitFor(t, next, second, 0)
	if got := indexes(old); !slices.Equal(got, []uint32{first}) {
		t.Errorf("the old one has %v, want %d as before", got, first)
	}
}

// TestLostMessages: when more has changed than the socket holds, all interfaces are listed anew.
func TestLostMessages(t *testing.T) {
	s := newSystem(t)
	w := s.watch()
	p := compile(t, `iface == "a"`)
	s.ok(w.Follow(p))
	s.ok(w.events.SetReadBuffer(1)) // the least the kernel gives
	w.mu.Lock()                     // so nothing is read
	for range 50 {
		s.add("b")
		s.remove("b")
	}
	index := s.add("a")
	w.mu.Unlock()
	waitFor(t, p, index)
}

// TestDrain: a drained socket hears of the next change; one that is not drained loses it without an error.
func TestDrain(t *testing.T) {
	s := newSystem(t)
	var w *Watch
	s.ok(s.host.Do(func() (err error) { w, err = open(); return err }))
	s.Cleanup(func() { s.ok(w.Close()) })
	s.ok(w.events.SetReadBuffer(1)) // the least the kernel gives
	for range 5 {
		s.add("b")
		s.remove("b")
	}
	if _, err := w.events.Receive(); !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("a socket without room: %v", err)
	}
	s.ok(w.drain())
	s.ok(w.events.SetReadBuffer(1 << 20))
	want := s.add("a")
	s.ok(w.events.SetReadDeadline(time.Now().Add(20 * time.Second)))
	for index := uint32(0); index != want; {
		messages, err := w.events.Receive()
		s.ok(err)
		for _, m := range messages {
			if i, name, ok := linkOf(m.Data); ok && name == "a" {
				index = i
			} else if name == "b" {
				t.Fatal("the socket still had messages from before")
			}
		}
	}
}

// TestBridge: an interface that leaves a bridge is not gone.
func TestBridge(t *testing.T) {
	s := newSystem(t)
	if err := s.nl.LinkAdd(&vnl.Bridge{LinkAttrs: vnl.LinkAttrs{Name: "bridge", TxQLen: -1}}); err != nil {
		t.Skip("no bridges here: ", err)
	}
	w := s.watch()
	port := s.add("port")
	p := compile(t, `iface == "port" or iface == "sign"`)
	s.ok(w.Follow(p))
	waitFor(t, p, port, 0)
	s.ok(s.nl.LinkSetMaster(s.get("port"), s.get("bridge")))
	s.ok(s.nl.LinkSetNoMaster(s.get("port")))
	sign := s.add("sign")
	waitFor(t, p, port, sign)
}

// message is one about an interface, as the kernel sends it.
func message(family byte, index uint32, name string) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], index)
	e := netlink.NewAttributeEncoder()
	e.Uint32(unix.IFLA_MTU, 1500)
	e.String(unix.IFLA_IFNAME, name)
	attributes, err := e.Encode()
	if err != nil {
		panic(err)
	}
	return append(b, attributes...)
}

func FuzzLinkOf(f *testing.F) {
	for _, b := range [][]byte{message(unix.AF_UNSPEC, 7, "eth0"), message(unix.AF_BRIDGE, 7, "eth0"), message(unix.AF_UNSPEC, 0, ""), nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		index, name, ok := linkOf(b)
		if ok && (index == 0 || b[0] != unix.AF_UNSPEC || len(name) > len(b)) {
			t.Errorf("%x: %d, %q", b, index, name)
		}
	})
}

func TestLinkOf(t *testing.T) {
	if index, name, ok := linkOf(message(unix.AF_UNSPEC, 7, "eth0")); index != 7 || name != "eth0" || !ok {
		t.Errorf("%d, %q, %v", index, name, ok)
	}
	if _, _, ok := linkOf(message(unix.AF_BRIDGE, 7, "eth0")); ok {
		t.Error("what a bridge says counts")
	}
}
