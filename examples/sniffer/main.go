// Sniffer prints the packets that match a filter, and lets them go on.
//
//	sniffer 'tcp.Syn and not tcp.Ack'
package main

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"os"
	"os/signal"
	"strings"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

func main() {
	log.SetFlags(0)
	filter := strings.Join(os.Args[1:], " ")
	if filter == "" {
		filter = "tcp or udp"
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	h, err := divert.Open(filter, divert.WithFlags(divert.Sniff))
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	log.Printf("sniffing %q, served by %s", filter, h.Description())
	for p, err := range h.Packets(ctx) {
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(describe(p))
	}
}

// describe returns direction, addresses, protocol and length of a packet.
func describe(p *divert.Packet) string {
	direction := "in "
	if p.Addr.Outbound {
		direction = "out"
	}
	var h packet.Parsed
	h.Parse(p.Data)
	var src, dst netip.Addr
	if ip := h.IPv4(p.Data); ip != nil {
		src, dst = ip.Src(), ip.Dst()
	} else if ip := h.IPv6(p.Data); ip != nil {
		src, dst = ip.Src(), ip.Dst()
	}
	return fmt.Sprintf("%s %v > %v protocol %d, %d bytes", direction, src, dst, h.Protocol, len(p.Data))
}
