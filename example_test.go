package divert_test

import (
	"context"
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/packet"
)

// In these examples the network is a fake, so that they run anywhere; a program calls divert.Open instead of
// network.Open.

// query puts a datagram to port 53 on the network, on its way out of this host.
func query(n *diverttest.Network, payload string) {
	h := packet.Header{Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("192.0.2.1:53")}
	b, err := h.AppendUDP(nil, []byte(payload))
	if err != nil {
		log.Fatal(err)
	}
	n.Outbound(b, 0)
}

// delivered prints the payloads of the packets that have left the host.
func delivered(n *diverttest.Network) {
	for _, p := range n.Delivered() {
		fmt.Printf("delivered %q\n", p.Payload())
	}
}

// A program that lets every query but one go on.
func Example() {
	network := diverttest.New()
	h, err := network.Open("outbound and udp.DstPort == 53")
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	query(network, "wanted")
	query(network, "unwanted")
	if err := h.Shutdown(divert.ShutdownRecv); err != nil { // the loop ends when the queue is empty
		log.Fatal(err)
	}
	for p, err := range h.Packets(context.Background()) {
		if err != nil {
			log.Fatal(err)
		}
		if string(p.Payload()) == "unwanted" {
			err = h.Drop(p)
		} else {
			err = h.Accept(p)
		}
		if err != nil {
			log.Print(err)
		}
	}
	delivered(network)
	// Output: delivered "wanted"
}

func ExampleHandle_Send() {
	network := diverttest.New()
	h, err := network.Open("outbound and udp.DstPort == 53")
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	query(network, "a question")
	p, err := h.RecvContext(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	if err := p.SetPayload([]byte("another question")); err != nil {
		log.Fatal(err)
	}
	if err := h.Send(p); err != nil { // computes the checksums
		log.Fatal(err)
	}
	delivered(network)
	// Output: delivered "another question"
}

func ExampleHandle_SetFilter() {
	network := diverttest.New()
	h, err := network.Open("false")
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	query(network, "unseen")
	if err := h.SetFilter("udp.DstPort == 53"); err != nil {
		log.Fatal(err)
	}
	query(network, "seen")
	p, err := h.RecvContext(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q from %v to %v\n", p.Payload(), p.Src(), p.Dst())
	if err := h.SetFilter("udp.DstPort = = 53"); err != nil {
		fmt.Println("a filter that does not compile changes nothing")
	}
	// Output:
	// "seen" from 10.0.0.1:40000 to 192.0.2.1:53
	// a filter that does not compile changes nothing
}

func ExampleHandle_Stats() {
	network := diverttest.New()
	h, err := network.Open("udp", divert.WithFlags(divert.Drop))
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	query(network, "one")
	query(network, "two")
	s, err := h.Stats()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Matched, "matched,", s.Dropped, "dropped")
	// Output: 2 matched, 2 dropped
}

// Each packet goes on after 100 ms. When the program is to end, for instance by ^C, the packets that it holds go on at
// once and later packets are not captured: nothing is lost.
func Example_delay() {
	network := diverttest.New()
	h, err := network.Open("outbound and udp.DstPort == 53")
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	query(network, "first")
	query(network, "second")

	// In a program: ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	ctx, stop := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer stop()
	context.AfterFunc(ctx, func() { _ = h.Shutdown(divert.ShutdownRecv) })
	type held struct {
		*divert.Packet
		until time.Time
	}
	queue, done := make(chan held, 1000), make(chan struct{})
	go func() {
		defer close(done)
		for p := range queue {
			select {
			case <-time.After(time.Until(p.until)):
			case <-ctx.Done():
			}
			if err := h.Accept(p.Packet); err != nil {
				log.Print(err)
			}
		}
	}()
	for {
		p, err := h.RecvContext(context.Background()) // io.EOF when all has been received after the shutdown
		if err != nil {
			break
		}
		queue <- held{p, time.Now().Add(100 * time.Millisecond)}
	}
	close(queue)
	<-done
	delivered(network)
	// Output:
	// delivered "first"
	// delivered "second"
}
