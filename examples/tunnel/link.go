//go:build linux

package main

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// sender is the part of a divert handle that the link uses to send.
type sender interface {
	SendBatch([]divert.Packet) (int, error)
}

// link is the network interface of the stack: a divert handle. Captured packets come in on it; packets that go out on
// it are injected toward the applications.
type link struct {
	out    sender
	toward divert.Address // address for injected packets
	mtu    uint32         // bytes of IP packet
	large  bool           // TCP may go out in packets of 64 KiB: nothing on the path segments them

	stack   atomic.Pointer[stack.NetworkDispatcher]
	failed  atomic.Uint64 // packets that could not be injected
	batches sync.Pool     // *[]divert.Packet
}

// newLink returns a link over a handle. At LayerForward packets go to their destination over the interfaces that
// routing selects, with the MTU of Ethernet. At LayerNetwork they belong to this host, and go over its loopback
// interface, which accepts any source and any length.
func newLink(out sender, layer divert.Layer) *link {
	l := &link{out: out, mtu: 1500, toward: divert.Address{Layer: layer, Event: divert.EventPacket, Outbound: true}}
	if layer == divert.LayerNetwork {
		l.toward.Loopback, l.mtu, l.large = true, header.IPv4MaximumPayloadSize, true
	}
	l.batches.New = func() any { return new([]divert.Packet) }
	return l
}

// deliver passes a captured packet to the stack, which copies it.
func (l *link) deliver(b []byte) {
	s := l.stack.Load()
	if s == nil || len(b) == 0 {
		return
	}
	protocol := header.IPv4ProtocolNumber
	if b[0]>>4 == 6 {
		protocol = header.IPv6ProtocolNumber
	}
	p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	(*s).DeliverNetworkPacket(protocol, p)
	p.DecRef()
}

// WritePackets injects packets from the stack.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	packets := list.AsSlice()
	batch := l.batches.Get().(*[]divert.Packet)
	defer l.batches.Put(batch)
	for len(*batch) < min(len(packets), divert.MaxBatch) {
		*batch = append(*batch, divert.Packet{})
	}
	for rest := packets; len(rest) > 0; {
		n := min(len(rest), divert.MaxBatch)
		for i, p := range rest[:n] {
			l.fill(&(*batch)[i], p)
		}
		if sent, _ := l.out.SendBatch((*batch)[:n]); sent < n {
			l.failed.Add(uint64(n - sent)) // lost like any packet; TCP retransmits
		}
		rest = rest[n:]
	}
	return len(packets), nil
}

// fill turns in into out, using out's own memory.
func (l *link) fill(out *divert.Packet, in *stack.PacketBuffer) {
	out.Data = out.Buffer(in.Size())[:0]
	views, skip := in.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		out.Data = append(out.Data, b[min(skip, len(b)):]...)
		skip -= min(skip, len(b))
	}
	out.Addr = l.toward
	out.Addr.IPv6 = in.NetworkProtocolNumber == header.IPv6ProtocolNumber
	out.Addr.IPChecksum, out.Addr.UDPChecksum = true, true
	out.Addr.TCPChecksum = !in.GSOOptions.NeedsCsum // then Send computes it
}

// GSOMaxSize returns the length of the largest outgoing TCP packet, in bytes.
func (l *link) GSOMaxSize() uint32 { return header.IPv4MaximumPayloadSize }

// SupportedGSO returns whether TCP may go out in packets of GSOMaxSize.
func (l *link) SupportedGSO() stack.SupportedGSO {
	if l.large {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

// Capabilities returns that checksums of captured packets are not verified: outbound packets often leave them to the
// hardware.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach sets the stack that receives the packets.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.stack.Store(nil)
		return
	}
	l.stack.Store(&d)
}

// IsAttached reports whether there is a stack.
func (l *link) IsAttached() bool { return l.stack.Load() != nil }

// MTU returns the length of the largest packet other than those of GSOMaxSize, in bytes.
func (l *link) MTU() uint32 { return l.mtu }

// The rest of stack.LinkEndpoint: there is no link layer.

func (l *link) SetMTU(mtu uint32)                       { panic(fmt.Sprint("the MTU is constant: ", mtu)) }
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
