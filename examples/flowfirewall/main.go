// Flowfirewall is a firewall that decides each flow once, at its first packet: it drops flows with an address in a file
// of addresses and networks, and accepts all others. The kernel handles the rest of each flow. The file may change.
//
//	flowfirewall blocked.txt
package main

import (
	"context"
	"errors"
	"log"
	"net/netip"
	"os"
	"os/signal"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: flowfirewall FILE")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	h, err := divert.Open("not loopback")
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	blocked := filter.NewAddressSet()
	err = blocked.Follow(ctx, os.Args[1], func(err error) {
		if err == nil {
			err = h.ForgetFlows() // every flow is decided again
		}
		if err != nil {
			log.Print(err) // the list stays unchanged
		}
	})
	if err != nil {
		log.Fatal(err)
	}
	log.Print("begun")
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

// decide decides a packet with its flow, or alone if it has no flow: a fragment, an ICMP error, another protocol.
func decide(h *divert.Handle, p *divert.Packet, blocked *filter.Set) error {
	flow, alone := h.AcceptFlow, h.Accept
	if blocked.Contains(remote(p)) {
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
