// Rewrite replaces a text with another of the same length in the TCP and UDP packets that this host sends.
//
//	rewrite 80 'Accept-Encoding: gzip' 'Accept-Nothing!: gzip'
package main

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 || len(os.Args[2]) != len(os.Args[3]) {
		log.Fatal("usage: rewrite PORT TEXT TEXT-OF-THE-SAME-LENGTH")
	}
	port, err := strconv.ParseUint(os.Args[1], 10, 16)
	if err != nil {
		log.Fatal(err)
	}
	from, to := []byte(os.Args[2]), []byte(os.Args[3])
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	h, err := divert.Open(fmt.Sprintf("outbound and (tcp.PayloadLength > 0 or udp.PayloadLength > 0) and remotePort == %d", port))
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	log.Printf("replacing %q with %q in packets to port %d", from, to, port)
	for p, err := range h.Packets(ctx) {
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		if err := sendOn(h, p, from, to); err != nil {
			log.Print(err)
		}
	}
}

// sendOn sends a packet on, changed if its payload contains the text.
func sendOn(h *divert.Handle, p *divert.Packet, from, to []byte) error {
	var parsed packet.Parsed
	parsed.Parse(p.Data)
	payload := parsed.Payload(p.Data) // a part of p.Data
	if !bytes.Contains(payload, from) {
		return h.Accept(p) // unchanged: no byte is copied back
	}
	copy(payload, bytes.ReplaceAll(payload, from, to))
	// Send computes the checksums that the address does not mark as right.
	p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false
	return h.Send(p)
}
