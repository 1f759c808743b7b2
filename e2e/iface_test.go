//go:build linux

package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// TestInterfaceByName: the filter of a handle follows an interface that is renamed, applies to another interface that
// takes the name, and applies again when the interface is created anew.
func TestInterfaceByName(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			h, err := lab.NewT(t).AddHost("h")
			if err != nil {
				t.Fatal(err)
			}
			needEngine(t, h, e.engine)
			s := &renamed{T: t, host: h}
			if s.nl, err = h.Netlink(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.nl.Close)
			s.add("wan", 1)
			s.add("lan", 2)
			s.handle = openAt(t, h, `udp and outbound and iface == "wan"`, divert.WithFlags(divert.Drop), divert.WithEngine(e.engine))
			s.rest = openAt(t, h, "udp and outbound and udp.DstPort == 7011", divert.WithFlags(divert.Sniff|divert.RecvOnly),
				divert.WithPriority(-1), divert.WithEngine(e.engine))
			s.expect("at first", 1)
			s.rename("wan", "old")
			s.expect("renamed", 1)
			s.rename("lan", "wan")
			s.expect("the name is another's", 2)
			if err := s.nl.LinkDel(s.link("wan")); err != nil {
				t.Fatal(err)
			}
			s.expect("removed")
			s.add("wan", 3)
			s.expect("made anew", 3)
			if err := s.handle.SetFilter(`udp and outbound and iface in {"old", "none"}`); err != nil {
				t.Fatal(err)
			}
			s.expect("another filter", 1)
			if err := s.handle.SetFilter(`udp and outbound and not (iface == "old") and iface != "lo"`); err != nil {
				t.Fatal(err)
			}
			s.expect("the opposite", 3)
			// An alternative name works too, and may be longer than an interface's own name.
			const long = "a-name-of-more-than-fifteen-bytes"
			if err := s.nl.LinkAddAltName(s.link("old"), long); err != nil {
				t.Fatal(err)
			}
			if err := s.handle.SetFilter(`udp and outbound and iface == "` + long + `"`); err != nil {
				t.Fatal(err)
			}
			s.expect("an alternative name", 1)
			for _, err := range []error{s.nl.LinkDelAltName(s.link("old"), long), s.nl.LinkAddAltName(s.link("wan"), long)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			s.expect("the alternative name is another's", 3)
		})
	}
}

// renamed is a host whose interfaces a test renames; each interface has its own network.
type renamed struct {
	*testing.T
	host   *lab.Host
	nl     *netlink.Handle
	handle *divert.Handle // drops matching packets
	rest   *divert.Handle // receives the others
	nets   []int
	sent   int
}

func (s *renamed) link(name string) netlink.Link {
	s.Helper()
	l, err := s.nl.LinkByName(name)
	if err != nil {
		s.Fatal(err)
	}
	return l
}

// add makes an interface with the network 10.net.0.0/24.
func (s *renamed) add(name string, net int) {
	s.Helper()
	peer := fmt.Sprint("peer", net)
	if err := s.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: peer}); err != nil {
		s.Fatal(err)
	}
	addr, err := netlink.ParseAddr(fmt.Sprintf("10.%d.0.1/24", net))
	if err != nil {
		s.Fatal(err)
	}
	l := s.link(name)
	for _, err := range []error{s.nl.AddrAdd(l, addr), s.nl.LinkSetUp(l), s.nl.LinkSetUp(s.link(peer))} {
		if err != nil {
			s.Fatal(err)
		}
	}
	s.nets = append(s.nets, net)
}

func (s *renamed) rename(from, to string) {
	s.Helper()
	l := s.link(from)
	// Kernels before 6.2 rename only interfaces that are down.
	for _, err := range []error{s.nl.LinkSetDown(l), s.nl.LinkSetName(l, to), s.nl.LinkSetUp(l)} {
		if err != nil {
			s.Fatal(err)
		}
	}
}

// expect sends datagrams over all interfaces until exactly those of the given networks match.
func (s *renamed) expect(when string, nets ...int) {
	s.Helper()
	for begin := time.Now(); ; {
		var got []int
		for _, net := range s.nets {
			if s.matches(net) {
				got = append(got, net)
			}
		}
		if slices.Equal(got, nets) {
			return
		}
		if time.Since(begin) > 20*time.Second {
			s.Fatalf("%s: packets of the networks %v match, want %v", when, got, nets)
		}
	}
}

// matches sends a datagram to a network and waits until it is dropped or reaches the other handle. Without a route to
// the network nothing matches.
func (s *renamed) matches(network int) bool {
	s.Helper()
	before, err := s.handle.Stats()
	if err != nil {
		s.Fatal(err)
	}
	s.sent++
	text := fmt.Sprint("datagram ", s.sent)
	err = s.host.Do(func() error {
		c, err := net.Dial("udp4", fmt.Sprintf("10.%d.0.2:7011", network))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(text))
		return err
	})
	if errors.Is(err, unix.ENETUNREACH) {
		return false
	}
	if err != nil && !errors.Is(err, unix.EPERM) { // a handle that drops may report that to the sender
		s.Fatal(err)
	}
	b := make([]byte, 2000)
	for begin := time.Now(); time.Since(begin) < 20*time.Second; {
		if err := s.rest.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			s.Fatal(err)
		}
		n, _, err := s.rest.Recv(b)
		if err == nil && bytes.HasSuffix(b[:n], []byte(text)) {
			return false
		}
		if now, err := s.handle.Stats(); err != nil || now.Dropped > before.Dropped {
			return err == nil
		}
	}
	s.Fatalf("the datagram to the network %d has neither been dropped nor come through", network)
	return false
}
