package diverttest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/netip"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/packet"
)

// Opener opens the handles of the program: divert.Open, or in a test the method Open of a network.
type Opener func(filter string, opts ...divert.Option) (*divert.Handle, error)

// redirectDNS is the program under test: it sends all DNS queries over IPv4 to another resolver, until ctx ends.
func redirectDNS(ctx context.Context, open Opener, resolver netip.Addr) error {
	h, err := open("outbound and ip and udp.DstPort == 53")
	if err != nil {
		return err
	}
	defer h.Close()
	for p, err := range h.Packets(ctx) {
		if err != nil {
			return err
		}
		packet.IPv4(p.Data).SetDst(resolver)
		p.Addr.IPChecksum, p.Addr.UDPChecksum = false, false // to be computed again
		if err := h.Send(p); err != nil {
			return err
		}
	}
	return nil
}

// A program that redirects DNS queries gets a query, and the test checks its destination.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	network := diverttest.New()
	opened, done := make(chan bool), make(chan error)
	go func() {
		done <- redirectDNS(ctx, func(filter string, opts ...divert.Option) (*divert.Handle, error) {
			defer close(opened)
			return network.Open(filter, opts...)
		}, netip.MustParseAddr("9.9.9.9"))
	}()
	<-opened // from now on packets are captured

	query, err := (&packet.Header{Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("192.0.2.1:53")}).AppendUDP(nil, []byte("query"))
	if err != nil {
		log.Fatal(err)
	}
	network.Outbound(query, diverttest.Link)
	p, err := network.Next(ctx)
	if err != nil {
		log.Fatal(err)
	}
	var parsed packet.Parsed
	fmt.Println(parsed.ParseExact(p.Data), packet.IPv4(p.Data).Dst(), string(parsed.Payload(p.Data)))
	fmt.Println("checksums right:", parsed.VerifyIPChecksum(p.Data), parsed.VerifyTransportChecksum(p.Data))

	cancel()
	fmt.Println("ended by the context:", errors.Is(<-done, context.Canceled), "handles left:", network.Handles())
	// Output:
	// true 9.9.9.9 query
	// checksums right: true true
	// ended by the context: true handles left: 0
}

// A handle that blocks a program's connections gets one.
func ExampleNetwork_Raise() {
	network := diverttest.New()
	h, err := network.Open("event == CONNECT and remotePort == 25",
		divert.WithLayer(divert.LayerSocket), divert.WithFlags(divert.RecvOnly))
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()

	connect := divert.Address{Event: packet.EventSocketConnect}
	connect.SetFlow(packet.FlowData{
		ProcessID: 7, Protocol: packet.ProtocolTCP,
		LocalAddr: netip.MustParseAddr("10.0.0.1"), LocalPort: 40000,
		RemoteAddr: netip.MustParseAddr("192.0.2.1"), RemotePort: 25,
	})
	allowed, err := network.Raise(connect)
	fmt.Println(allowed, err)

	_, a, err := h.Recv(nil)
	fmt.Println(a.Event, a.Flow().ProcessID, a.Flow().RemotePort, err)
	// Output:
	// false <nil>
	// CONNECT 7 25 <nil>
}

// A test causes errors that are hard to get otherwise.
func ExampleNetwork_FailSends() {
	network := diverttest.New()
	h, err := network.Open("false")
	if err != nil {
		log.Fatal(err)
	}
	defer h.Close()
	network.FailSends(func(p *divert.Packet) error {
		if len(p.Data) > 1400 {
			return divert.ErrTooLarge
		}
		return nil
	})
	long, err := (&packet.Header{Src: netip.MustParseAddrPort("[fd00::1]:1"), Dst: netip.MustParseAddrPort("[fd00::2]:2")}).AppendUDP(nil, make([]byte, 1400))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(h.Send(&divert.Packet{Data: long, Addr: divert.Address{Outbound: true}}))
	// Output: divert: send: packet too large
}
