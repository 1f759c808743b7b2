package diverttest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// The interfaces that every network has.
const (
	Loopback uint32 = 1 // from the host to itself
	Link     uint32 = 2 // to other hosts
)

// Network is the network of one fake host: its packets and events meet the handles opened on it, and no others. Its
// methods may be called from several goroutines.
type Network struct {
	start  time.Time // start of the clock of the timestamps
	origin int64     // the start in ticks

	mu        sync.Mutex
	handles   []*handle // open, from the highest to the lowest
	opened    uint64    // number of handles ever opened
	devices   map[uint32]bool
	names     map[string]uint32          // interfaces by name
	flows     map[packet.FlowData]uint64 // established and not deleted; the value of opened at the beginning
	refuse    func(*divert.Packet) error
	delivered []divert.Packet
	changed   chan struct{} // closed and replaced at each delivery
}

// New returns a network without handles, with the interfaces Loopback, called lo, and Link, called eth0.
func New() *Network {
	return &Network{
		start:   time.Now(),
		origin:  clock.Now(),
		devices: map[uint32]bool{Loopback: true, Link: true},
		names:   map[string]uint32{"lo": Loopback, "eth0": Link},
		flows:   make(map[packet.FlowData]uint64),
		changed: make(chan struct{}),
	}
}

// Open opens a handle on the network. It is divert.Open except for the source of packets: it checks filter and options
// the same way, with the same errors. It needs no rights; WithEngine and WithDriver change nothing.
func (n *Network) Open(text string, opts ...divert.Option) (*divert.Handle, error) {
	return divert.Open(text, n.with(opts)...)
}

// OpenProgram is Open for a compiled filter, like divert.OpenProgram.
func (n *Network) OpenProgram(p *filter.Program, opts ...divert.Option) (*divert.Handle, error) {
	return divert.OpenProgram(p, n.with(opts)...)
}

// with returns options that open handles on this network.
func (n *Network) with(opts []divert.Option) []divert.Option {
	return append(slices.Clip(opts), engine.With(n.open).(divert.Option))
}

// Handles returns the number of open handles, for a test whether a program closes its handles.
func (n *Network) Handles() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.handles)
}

// AddInterface adds an interface, so that packets can be injected as if they came in on it. Putting a packet on an
// interface adds it, too. Index 0 is none.
func (n *Network) AddInterface(ifIdx uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.add(ifIdx)
}

// NameInterface gives an interface a name, for filters such as iface == "eth0", and takes the name from any other
// interface. It adds the interface if necessary; with index 0, no interface has the name. Earlier names of the interface
// remain valid, as for handles of Linux.
func (n *Network) NameInterface(ifIdx uint32, name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.add(ifIdx)
	n.names[name] = ifIdx
	for _, h := range n.handles {
		n.tellNames(h.program)
		for _, p := range h.beside {
			n.tellNames(p)
		}
	}
}

// known returns a program with the interfaces of the network.
func (n *Network) known(p *prog.Program) *prog.Program {
	p = p.OwnInterfaces()
	n.tellNames(p)
	return p
}

func (n *Network) tellNames(p *prog.Program) {
	for _, i := range p.Interfaces() {
		_ = i.SetInterface(n.names[i.Name]) // there is always room for one value
	}
}

func (n *Network) add(ifIdx uint32) {
	if ifIdx != 0 {
		n.devices[ifIdx] = true
	}
}

// FailSends makes sends fail. f is called for each valid packet that is sent on a handle, except those that Accept lets
// go on unchanged. If f returns an error, the call fails with it, and the packet is not sent. f must not call the network
// or its handles. A nil f ends this.
func (n *Network) FailSends(f func(*divert.Packet) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = f
}

// Outbound puts an IP packet on the network that the host sends over an interface, Link if ifIdx is 0. On Loopback it is
// a packet from the host to itself, which handles see as outbound only.
//
// When it returns, the packet waits in the queue of a handle, was dropped by one, or has been delivered. Bytes that are
// no IP packet, or not as long as their IP header says, match no filter and are delivered.
func (n *Network) Outbound(b []byte, ifIdx uint32) {
	n.put(b, fresh(divert.LayerNetwork, true, ifIdx))
}

// Inbound puts an IP packet on the network that the host receives on an interface; otherwise it is like Outbound.
func (n *Network) Inbound(b []byte, ifIdx uint32) {
	n.put(b, fresh(divert.LayerNetwork, false, ifIdx))
}

// Forward puts an IP packet on the network that the host routes and is about to send over an interface; otherwise it is
// like Outbound.
func (n *Network) Forward(b []byte, ifIdx uint32) {
	n.put(b, fresh(divert.LayerForward, true, ifIdx))
}

// Put puts a packet on the network with the address for handles to see. It serves cases that the other methods lack:
// packets injected by another program (Impostor), and checksums left to the hardware (IPChecksum, TCPChecksum,
// UDPChecksum false). Put itself sets Timestamp, Sniffed and IPv6. The layer must be LayerNetwork or LayerForward, else
// the error is divert.ErrInvalid.
func (n *Network) Put(b []byte, a divert.Address) error {
	if !packets(a.Layer) || a.Event != packet.EventPacket {
		return fmt.Errorf("diverttest: %w: there are no packets at the layer %v with the event %v; events are raised with Raise",
			divert.ErrInvalid, a.Layer, a.Event)
	}
	n.put(b, a)
	return nil
}

// fresh returns the address of a packet with correct checksums.
func fresh(l divert.Layer, outbound bool, ifIdx uint32) divert.Address {
	a := divert.Address{Layer: l, Outbound: outbound, IPChecksum: true, TCPChecksum: true, UDPChecksum: true}
	a.SetNetwork(packet.NetworkData{IfIdx: ifIdx})
	return a
}

// put puts a packet on the network.
func (n *Network) put(b []byte, a divert.Address) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := a.Network()
	if d.IfIdx == 0 {
		d.IfIdx = Link
	}
	n.add(d.IfIdx)
	forget(&a)
	a.SetNetwork(d)
	a.Sniffed = false
	a.Loopback = a.Layer == divert.LayerNetwork && d.IfIdx == Loopback
	a.Outbound = a.Outbound || a.Layer == divert.LayerForward // api.md 15
	n.carry(bytes.Clone(b), a, above)
}

// packets reports whether the layer is one with packets.
func packets(l divert.Layer) bool { return l == divert.LayerNetwork || l == divert.LayerForward }

// now returns the time of the timestamps. It uses package time, whose clock a bubble of testing/synctest controls.
func (n *Network) now() int64 {
	return n.origin + int64(float64(time.Since(n.start))/clock.Tick())
}

// nanoseconds converts a timestamp to nanoseconds, the unit of flows.
func nanoseconds(timestamp int64) int64 { return int64(float64(timestamp) * clock.Tick()) }

// Delivered returns the packets that have left the last handle since the last call, in that order, and forgets them. Addr
// gives the destination of each by Layer, Outbound and Network().IfIdx: outbound packets have left the host, inbound ones
// have reached its sockets.
func (n *Network) Delivered() []divert.Packet {
	n.mu.Lock()
	defer n.mu.Unlock()
	ps := n.delivered
	n.delivered = nil
	return ps
}

// Next waits for a packet that has left the last handle and removes it from those that Delivered would return. It fails
// only when ctx ends, with its error.
func (n *Network) Next(ctx context.Context) (divert.Packet, error) {
	for {
		p, changed := n.first()
		if changed == nil {
			return p, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return divert.Packet{}, ctx.Err()
		}
	}
}

// first removes the first delivered packet, or returns the channel to wait for.
func (n *Network) first() (p divert.Packet, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.delivered) == 0 {
		return p, n.changed
	}
	p = n.delivered[0]
	n.delivered = n.delivered[1:]
	return p, nil
}

// deliver hands a packet to the test.
func (n *Network) deliver(data []byte, a packet.Address) {
	n.delivered = append(n.delivered, divert.Packet{Data: data, Addr: a})
	close(n.changed)
	n.changed = make(chan struct{})
}
