// Dropport drops all packets to a UDP or TCP port, inbound and outbound, until it is interrupted. Nobody is notified:
// the sender gets no error, and the network no answer.
//
//	dropport 53
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"

	"github.com/opendivert/divert"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: dropport PORT")
	}
	port, err := strconv.ParseUint(os.Args[1], 10, 16)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	// The kernel drops matching packets, so there is nothing to receive.
	h, err := divert.Open(fmt.Sprintf("udp.DstPort == %d or tcp.DstPort == %[1]d", port), divert.WithFlags(divert.Drop))
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	log.Printf("dropping packets to port %d", port)
	<-ctx.Done()
	s, err := h.Stats()
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("%d packets dropped", s.Dropped)
}
