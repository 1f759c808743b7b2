//go:build linux

package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/tun"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// termFilters are filters whose terms have every kind of condition.
var termFilters = []string{
	"ip", "ipv6", "tcp", "udp.DstPort == 53", "udp.SrcPort != 53", "tcp.DstPort in {80, 443, 1000-2000}", "tcp.DstPort in {1, 3, 5, 80}",
	"udp.DstPort >= 0x8000 or udp.DstPort < 20", "remotePort == 80", "localPort in {0-79, 81-65535}", "protocol == 47", "ip.Protocol not in {6, 17}",
	"ipv6.NextHdr == 44", "ipv6.NextHdr in {17, 60, 58}", "ip.SrcAddr == 10.9.0.0/16", "ip.SrcAddr != 10.9.0.1", "remoteAddr in {10.9.0.1, 192.0.2.0/24, 2001:db8::/32}",
	"ipv6.SrcAddr == 2001:db8::1", "ipv6.SrcAddr > 2001:db8::1", "ip.DstAddr in {0.0.0.0-10.9.0.8, 255.0.0.0-255.255.255.255}", "icmp or icmpv6", "ip and tcp and remoteAddr == 10.9.0.1",
}

// anyIncoming returns a packet of another host that the kernel nearly always takes in.
func anyIncoming(r *rand.Rand) []byte {
	transport := make([]byte, []int{0, 2, 4, 8, 20, 30}[r.IntN(6)])
	if len(transport) >= 4 {
		binary.BigEndian.PutUint16(transport, []uint16{53, 80, uint16(r.Uint32())}[r.IntN(3)])
		binary.BigEndian.PutUint16(transport[2:], []uint16{53, 80, 443, 1500, 5, uint16(r.Uint32())}[r.IntN(6)])
	}
	if len(transport) >= 20 {
		transport[12] = 5 << 4
	}
	next := []byte{6, 6, 17, 17, 1, 58, 47}[r.IntN(7)]
	if r.IntN(2) == 0 {
		b := make([]byte, 20+4*r.IntN(3), 64)
		b[0], b[8], b[9] = 0x40|byte(len(b)/4), 64, next
		for i := 20; i < len(b); i++ {
			b[i] = 1 // no operation
		}
		binary.BigEndian.PutUint16(b[6:], []uint16{0, 0, 0x2000, 0x2003, 0x0004}[r.IntN(5)])
		copy(b[12:], [][]byte{{10, 9, 0, 1}, {10, 9, 0, 2}, {192, 0, 2, 5}, {8, 8, 8, 8}}[r.IntN(4)])
		copy(b[16:], []byte{10, 9, 0, byte(7 + r.IntN(3))})
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)+len(transport)))
		packet.CalcChecksums(b, nil, 0)
		return append(b, transport...)
	}
	for range r.IntN(3) {
		kind := []byte{43, 44, 51, 60, 135}[r.IntN(5)]
		h := make([]byte, 8)
		switch h[0] = next; kind {
		case 44:
			h[3] = []byte{0, 1, 9}[r.IntN(3)]
		case 51:
			h[1], h = 1, append(h, 0, 0, 0, 0)
		default:
			h[2], h[3] = 1, 4
		}
		next, transport = kind, append(h, transport...)
	}
	b := make([]byte, 40)
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(transport)))
	copy(b[8:], [][]byte{{0x20, 0x01, 0x0d, 0xb8, 15: 1}, {0x20, 0x01, 0x0d, 0xb8, 15: 2}, {0x20, 0x02, 15: 1}}[r.IntN(3)])
	copy(b[24:], []byte{0x20, 0x01, 0x0d, 0xb8, 14: 9, 15: 9})
	return append(b, transport...)
}

// TestRulesAskTermsAsTheyAreDefined compares the expressions of terms, in the kernel, with the meaning of the terms, packet by
// packet.
func TestRulesAskTermsAsTheyAreDefined(t *testing.T) {
	h, _ := newHost(t)
	var terms []prog.Term
	for _, text := range termFilters {
		p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		terms = append(terms, p.Necessary(false)...)
		terms = append(terms, prog.WithFragments(p.Necessary(false))...)
	}
	r := rand.New(rand.NewPCG(11, 12))
	reached, met := 0, make([]int, len(terms))
	err := h.Do(func() error {
		tun, err := upTUN("term0")
		if err != nil {
			return err
		}
		defer tun.Close()
		if err := countTerms(terms); err != nil {
			return err
		}
		c, err := dial()
		if err != nil {
			return err
		}
		defer c.Close()
		before := make([]uint64, len(terms)+1)
		for range 500 {
			b := anyIncoming(r)
			if _, err := tun.Write(b); err != nil {
				return err
			}
			all, err := c.counter(counterName(len(terms)))
			if err != nil {
				return err
			}
			if all == before[len(terms)] {
				continue // the kernel has thrown it away before
			}
			before[len(terms)] = all
			reached++
			for i := range terms {
				n, err := c.counter(counterName(i))
				if err != nil {
					return err
				}
				counted := n != before[i]
				before[i] = n
				if laterFragment(b) && (terms[i].SrcPort != nil || terms[i].DstPort != nil) {
					continue // some kernels take the bytes there for ports
				}
				if counted != terms[i].Meets(b) {
					return fmt.Errorf("packet %x: the rule says %v\nterm %+v", b, counted, terms[i])
				} else if counted {
					met[i]++
				}
			}
		}
		return nil
	})
	if path := (*os.PathError)(nil); errors.As(err, &path) { // of the device
		t.Skipf("packets cannot be made to come in: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if reached < 300 {
		t.Errorf("only %d packets came in", reached)
	}
	for i, n := range met {
		if n == 0 {
			t.Errorf("no packet has met %+v", terms[i])
		}
	}
}

// laterFragment reports whether a packet is a fragment of IPv4 other than the first.
func laterFragment(b []byte) bool { return b[0]>>4 == 4 && binary.BigEndian.Uint16(b[6:])&0x1FFF != 0 }

func counterName(i int) string { return fmt.Sprint("term_", i) }

// countTerms makes a table with a counter for each term, and one for all packets, where packets come in.
func countTerms(terms []prog.Term) error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.Close()
	generation, err := c.generation()
	if err != nil {
		return err
	}
	var b batch
	b.newTable()
	b.newChain(InboundFragments.definition())
	for i := range len(terms) + 1 {
		var match []expr.Any
		if i < len(terms) {
			match = slices.Concat(termExprs(&terms[i]))
		}
		b.newCounter(counterName(i))
		b.newRule(chains[InboundFragments].name, &rule{exprs: append(match, &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: counterName(i)})}, 0)
	}
	return c.commit(&b, generation)
}

// upTUN makes a TUN device in the namespace of the calling thread: packets written to it come in by it.
func upTUN(name string) (*os.File, error) {
	f, name, err := tun.New(name)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(sock)
	request.SetUint16(unix.IFF_UP)
	return f, unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, request)
}
