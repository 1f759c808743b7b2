// Flowfirewall is a firewall that decides each flow once, by its first packet: flows with an address in one of the networks
// that are named are dropped, all others pass. All that follows of a flow the kernel does.
//
//	flowfirewall 192.0.2.0/24 2001:db8::/32
package main

import (
	"context"
	"errors"
	"log"
	"net/netip"
	"os"
	"os/signal"
	"slices"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

func main() {
	log.SetFlags(0)
	var blocked []netip.Prefix
	for _, text := range os.Args[1:] {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			log.Fatal(err)
		}
		blocked = append(blocked, network.Masked())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	h, err := divert.Open("not loopback")
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	log.Printf("%d networks are blocked", len(blocked))
	for p, err := range h.Packets(ctx) {
		if errors.Is(err, context.Canceled) {
			break
		} else if err != nil {
			log.Fatal(err)
		}
		if err := decide(h, p, blocked); err != nil {
			log.Print(err)
		}
	}
	s, err := h.Stats()
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("%d packets were decided here, %d accepted and %d dropped with their flow", s.Received, s.FlowAccepted, s.FlowDropped)
}

// decide decides a packet with its flow, or alone if it has none: a fragment, an ICMP error, another protocol.
func decide(h *divert.Handle, p *divert.Packet, blocked []netip.Prefix) error {
	flow, alone := h.AcceptFlow, h.Accept
	if slices.ContainsFunc(blocked, func(n netip.Prefix) bool { return n.Contains(remote(p)) }) {
		flow, alone = h.DropFlow, h.Drop
	}
	err := flow(p)
	if errors.Is(err, divert.ErrInvalid) {
		return alone(p)
	}
	return err
}

// remote returns the address of the other host.
func remote(p *divert.Packet) netip.Addr {
	switch {
	case p.Addr.IPv6 && p.Addr.Outbound:
		return packet.IPv6(p.Data).Dst()
	case p.Addr.IPv6:
		return packet.IPv6(p.Data).Src()
	case p.Addr.Outbound:
		return packet.IPv4(p.Data).Dst()
	}
	return packet.IPv4(p.Data).Src()
}
