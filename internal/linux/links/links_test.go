//go:build linux

package links

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
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

// indexes returns the indexes that stand for the names of a program.
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
	return s.index(name)
}

func (s *system) index(name string) uint32 { s.Helper(); return uint32(s.get(name).Attrs().Index) }

func (s *system) get(name string) vnl.Link {
	s.Helper()
	l, err := s.nl.LinkByName(name)
	s.ok(err)
	return l
}

func (s *system) alias(name, alt string)   { s.Helper(); s.ok(s.nl.LinkAddAltName(s.get(name), alt)) }
func (s *system) unalias(name, alt string) { s.Helper(); s.ok(s.nl.LinkDelAltName(s.get(name), alt)) }
func (s *system) rename(from, to string)   { s.Helper(); s.ok(s.nl.LinkSetName(s.get(from), to)) }
func (s *system) remove(name string)       { s.Helper(); s.ok(s.nl.LinkDel(s.get(name))) }

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

// TestAlternatives: a name may be an alternative one, longer than an interface's own name can be. It stands for the interface
// that loses it until another takes it, as an own name does.
func TestAlternatives(t *testing.T) {
	s := newSystem(t)
	const long = "an-alternative-name-of-more-than-fifteen-bytes"
	first := s.add("a")
	s.alias("a", "other")
	s.alias("a", long)
	w := s.watch()
	p := compile(t, `iface == "other" or iface == "`+long+`" or iface == "third" or iface == "a"`)
	s.ok(w.Follow(p))
	if got := indexes(p); !slices.Equal(got, []uint32{first, first, 0, first}) {
		t.Fatalf("at first it stands for %v", got)
	}
	s.alias("a", "third")
	s.ok(s.nl.LinkSetUp(s.get("a"))) // the kernel does not tell of the alternative names of one that is down
	waitFor(t, p, first, first, first, first)
	s.ok(s.nl.LinkSetDown(s.get("a"))) // older kernels do not rename an interface that is up
	s.rename("a", "z")
	second := s.add("b")
	s.ok(s.nl.LinkSetUp(s.get("b")))
	s.unalias("z", long)
	s.alias("b", long)
	waitFor(t, p, first, second, first, first)
	s.alias("b", "a") // which was the other's own
	waitFor(t, p, first, second, first, second)
	s.unalias("b", long)
	s.unalias("b", "a")
	s.unalias("z", "other")
	s.add("other")
	waitFor(t, p, s.index("other"), second, first, second)
	s.remove("z")
	waitFor(t, p, s.index("other"), second, 0, second)
}

// TestAll lists the interfaces with all their names.
func TestAll(t *testing.T) {
	s := newSystem(t)
	index := s.add("a")
	s.alias("a", "other")
	s.alias("a", "third")
	var all []*Link
	s.ok(s.host.Do(func() (err error) { all, err = All(); return err }))
	i := slices.IndexFunc(all, func(l *Link) bool { return l.Name == "a" })
	if i < 0 || all[i].Index != index || !slices.Equal(all[i].Alternatives, []string{"other", "third"}) {
		t.Fatalf("%+v", all)
	}
	for name, want := range map[string]bool{"a": true, "other": true, "third": true, "lo": false, "": false} {
		if all[i].Has(name) != want {
			t.Errorf("%q is not right", name)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b *Link) int { return int(a.Index) - int(b.Index) }) || len(all) < 3 {
		t.Errorf("%+v", all)
	}
}

// TestFollowsSeveral: a name stands for the same interface in a second program, and a program that is not followed is left
// alone.
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
	waitFor(t, sign, s.index("sign")) // then the rename is known, too
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

// TestOnly: some of several programs are still followed, and their names keep their interfaces.
func TestOnly(t *testing.T) {
	s := newSystem(t)
	w := s.watch()
	first := s.add("a")
	one, two, three := compile(t, `iface == "a"`), compile(t, `iface == "b" or iface == "a"`), compile(t, `iface == "a"`)
	waitFor(t, func() *prog.Program { s.ok(w.Follow(one)); return one }(), first)
	s.rename("a", "z")
	s.ok(w.Follow(two))
	s.ok(w.Follow(three))
	w.Only(one, two)
	second := s.add("b")
	waitFor(t, two, second, first)
	third := s.add("a")
	waitFor(t, one, third)
	waitFor(t, two, second, third)
	if got := indexes(three); !slices.Equal(got, []uint32{first}) {
		t.Errorf("the third has %v, want %d as before", got, first)
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
			switch l := linkOf(m.Data); {
			case l == nil:
			case l.Name == "a":
				index = l.Index
			case l.Name == "b":
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
func message(family byte, index uint32, name string, alternatives ...string) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], index)
	e := netlink.NewAttributeEncoder()
	e.Uint32(unix.IFLA_MTU, 1500)
	e.String(unix.IFLA_IFNAME, name)
	e.Nested(unix.IFLA_PROP_LIST, func(props *netlink.AttributeEncoder) error {
		for _, alt := range alternatives {
			props.String(unix.IFLA_ALT_IFNAME, alt)
		}
		return nil
	})
	attributes, err := e.Encode()
	if err != nil {
		panic(err)
	}
	return append(b, attributes...)
}

func FuzzLinkOf(f *testing.F) {
	for _, b := range [][]byte{message(unix.AF_UNSPEC, 7, "eth0"), message(unix.AF_BRIDGE, 7, "eth0"), message(unix.AF_UNSPEC, 0, ""), message(unix.AF_UNSPEC, 7, "eth0", "one", "two"), nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := linkOf(b)
		if l != nil && (l.Index == 0 || b[0] != unix.AF_UNSPEC || len(l.Name+strings.Join(l.Alternatives, "")) > len(b)) {
			t.Errorf("%x: %+v", b, l)
		}
	})
}

func TestLinkOf(t *testing.T) {
	if l := linkOf(message(unix.AF_UNSPEC, 7, "eth0")); l == nil || l.Index != 7 || l.Name != "eth0" || l.Alternatives != nil {
		t.Errorf("%+v", l)
	}
	if l := linkOf(message(unix.AF_UNSPEC, 7, "eth0", "one", "two")); l == nil || !slices.Equal(l.Alternatives, []string{"one", "two"}) {
		t.Errorf("%+v", l)
	}
	if linkOf(message(unix.AF_BRIDGE, 7, "eth0")) != nil {
		t.Error("what a bridge says counts")
	}
}
