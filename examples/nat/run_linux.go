package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/examples/nat/table"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
	"golang.org/x/sys/unix"
)

// run runs the program until ctx ends.
func run(ctx context.Context, o options) error {
	if o.out == "" {
		return errors.New("no interface: -out eth1 names the one whose address is shared")
	}
	if o.most < 1 || o.perHost < 1 {
		return fmt.Errorf("-most %d and -host %d must be 1 or more", o.most, o.perHost)
	}
	if t := o.timeouts; min(t.UDP, t.Established, t.Transitory, t.ICMP) < 0 {
		return fmt.Errorf("a timeout is negative: %+v", t)
	}
	if o.inside == nil {
		o.inside = private
	}
	addr, err := addressOf(o.out)
	if err != nil {
		return err
	}
	inside6, outside6, prefixes, err := o.nptv6()
	if err != nil {
		return err
	}
	n := &nat{addr: addr, inside: o.inside, prefixes: prefixes}
	for i := range n.ids {
		n.ids[i] = uint16(rand.Uint32())
	}
	n.table = table.New(table.Limits{Mappings: o.most, PerHost: o.perHost, Sessions: o.most, Timeouts: o.timeouts}, &held{addr: addr}, rand.IntN)
	defer n.table.Close()
	for _, f := range o.forwards {
		if err := n.table.Forward(f.protocol, f.port, f.to); err != nil {
			return fmt.Errorf("-forward: %w", err)
		}
	}
	r := &router{nat: n}
	if err := r.open(o.inside, inside6, outside6); err != nil {
		return errors.Join(err, r.close())
	}
	if forwarding, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(string(forwarding)) == "0" {
		log.Print("this host routes nothing: sysctl net.ipv4.ip_forward=1 changes that")
	}
	log.Printf("%v stands for %v (%s). Ctrl-C ends.", addr, o.inside, r.forward.Description())
	err = r.run(ctx)
	log.Printf("%d packets were translated, %d filtered; for %d there was no mapping left", n.translated.Load(), n.filtered.Load(), n.full.Load())
	return err
}

// addressOf returns the IPv4 address of an interface.
func addressOf(name string) (netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("-out %s: %w", name, err)
	}
	addrs, err := i.Addrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			return p.Addr(), nil
		}
	}
	return netip.Addr{}, errors.Join(fmt.Errorf("-out %s: the interface has no address of IPv4", name), err)
}

// router moves packets between two handles and a nat.
type router struct {
	*nat
	forward  *divert.Handle // packets routed through this host
	network  *divert.Handle // packets to this host, before routing
	prefixed *divert.Handle // packets routed to the outer IPv6 prefix, nil without one
}

// open opens the handles.
func (r *router) open(inside []netip.Prefix, inside6, outside6 netip.Prefix) (err error) {
	behind := filter.NewAddressSet()
	for _, p := range inside {
		if err := behind.Add(filter.Prefix(p)); err != nil {
			return err
		}
	}
	through := "ip.SrcAddr in @inside and ip.DstAddr not in @inside"
	if r.prefixes != nil {
		through += fmt.Sprintf(" or ipv6.SrcAddr == %v and not (ipv6.DstAddr == %v or ipv6.DstAddr == %v)", inside6, inside6, outside6)
		// They have already been routed to other hosts, and are routed again unsegmented, as they came from the network:
		// nobody would segment them again.
		r.prefixed, err = divert.Open(fmt.Sprintf("ipv6.DstAddr == %v", outside6), divert.WithLayer(divert.LayerForward), divert.WithSegments())
		if err != nil {
			return err
		}
	}
	// First the handle that makes the kernel reassemble datagrams.
	if r.network, err = divert.Open(fmt.Sprintf("not loopback and (inbound and ip.DstAddr == %v or outbound and (icmp and icmp.Type != 0 and icmp.Type != 8 "+
		"or ip.SrcAddr == %[1]v and tcp.Rst))", r.addr)); err != nil {
		return err
	}
	r.forward, err = divert.Open(through, divert.WithLayer(divert.LayerForward), divert.WithSet("inside", behind))
	// An accepted flow of this host may have had the port before.
	r.nat.forget = func(p *divert.Packet) { _, _ = r.network.ForgetFlow(p) }
	return err
}

// run moves packets until ctx ends or a handle fails.
func (r *router) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stopped := context.AfterFunc(ctx, func() { _ = r.close() })
	defer stopped()
	var all sync.WaitGroup
	all.Go(func() {
		cancel(move(r.forward, r.forward, func(p *divert.Packet, now time.Time) action { return r.leaving(p, now) }))
	})
	if r.prefixed != nil {
		all.Go(func() {
			cancel(move(r.prefixed, r.prefixed, func(p *divert.Packet, now time.Time) action { return r.leaving(p, now) }))
		})
	}
	all.Go(func() {
		cancel(move(r.network, r.forward, func(p *divert.Packet, now time.Time) action {
			if p.Addr.Outbound {
				return r.own(p)
			}
			return r.arriving(p, now)
		}))
	})
	all.Go(func() {
		second := time.NewTicker(time.Second)
		defer second.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-second.C:
				r.mu.Lock()
				r.table.Expire(now)
				answers := r.syns.due(now)
				r.mu.Unlock()
				for _, b := range answers {
					anew(r.network, b, divert.Address{IPChecksum: true})
				}
			}
		}
	})
	all.Wait()
	_ = r.close() // it waits until the handles are closed
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (r *router) close() (err error) {
	for _, h := range []*divert.Handle{r.network, r.forward, r.prefixed} {
		if h != nil {
			err = errors.Join(err, h.Close())
		}
	}
	return err
}

// move applies decide to each packet of a handle, in batches, until receiving fails. Packets to be routed again go
// through the handle through.
func move(h, through *divert.Handle, decide func(*divert.Packet, time.Time) action) error {
	ps := make([]divert.Packet, divert.MaxBatch)
	var on, dropped []divert.Packet
	for {
		n, err := h.RecvBatch(ps)
		if err != nil {
			return err
		}
		on, dropped = on[:0], dropped[:0]
		now := time.Now()
		for i := range ps[:n] {
			p := &ps[i]
			what := decide(p, now)
			switch what {
			case acceptFlow:
				if h.AcceptFlow(p) == nil {
					continue
				}
				fallthrough
			case accept, send:
				on = append(on, *p)
				continue
			case inject:
				anew(h, p.Data, p.Addr)
			case route:
				anew(through, p.Data, p.Addr)
			case refuse:
				var parsed packet.Parsed
				if parsed.ParseExact(p.Data) {
					if b, ok := packet.AppendUnreachable(nil, p.Data, &parsed, icmpProhibited); ok {
						anew(through, b, divert.Address{IPChecksum: true})
					}
				}
			}
			dropped = append(dropped, divert.Packet{Addr: p.Addr})
		}
		_, _ = h.SendBatch(on) // a packet that cannot go on is lost, as on any network
		_ = h.DropBatch(dropped)
	}
}

// anew sends bytes as a new packet on a handle; of says which checksums are right.
func anew(h *divert.Handle, b []byte, of divert.Address) {
	_ = h.Send(&divert.Packet{Data: b, Addr: divert.Address{Layer: h.Layer(), Event: divert.EventPacket, Outbound: true, IPv6: of.IPv6,
		IPChecksum: of.IPChecksum, TCPChecksum: of.TCPChecksum, UDPChecksum: of.UDPChecksum}}) // lost, as above
}

// held keeps ports of an address away from local sockets, by binding sockets to them.
type held struct{ addr netip.Addr }

// Hold implements table.Ports. ICMP identifiers need no socket.
func (h *held) Hold(protocol uint8, port uint16) (release func(), ok bool) {
	kind := unix.SOCK_STREAM
	switch protocol {
	case table.ICMP:
		return func() {}, true
	case table.UDP:
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, false
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: h.addr.As4()}); err != nil {
		_ = unix.Close(fd)
		return nil, false
	}
	return func() { _ = unix.Close(fd) }, true
}
