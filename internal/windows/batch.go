package windows

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// unionUsed is how much of an address's layer data the driver fills at each layer, in bytes; it leaves
// what lies behind as it was (specification: api.md 2.1, quirk).
var unionUsed = [packet.NumLayers]int{8, 8, 64, 64, 32}

// errBadBatch says that the driver has written something other than a batch.
var errBadBatch = errors.New("the driver's answer is malformed")

// batch is the result of a receive call: items back to back, and an address for each.
type batch struct {
	layer     packet.Layer
	data      []byte
	addresses []byte
}

// unpack sets ps from the batch and returns how many packets it has. data may lie in the memory of ps[0],
// at its start; the other packets are copied to memory of their own. An address or packet that is
// missing ends the batch with an error, after the packets before it.
func (b *batch) unpack(ps []packet.Packet) (n int, err error) {
	count := len(b.addresses) / packet.AddressSize
	if count < 1 || count > len(ps) || len(b.addresses)%packet.AddressSize != 0 {
		return 0, fmt.Errorf("%w: %d bytes of addresses for %d packets", errBadBatch, len(b.addresses), len(ps))
	}
	rest := b.data
	for n < count {
		item, ok := b.next(rest, n == count-1)
		if !ok {
			return n, fmt.Errorf("%w: %d addresses, %d packets", errBadBatch, count, n)
		}
		p := &ps[n]
		address := b.addresses[n*packet.AddressSize:][:packet.AddressSize]
		clear(address[16+unionUsed[b.layer]:])
		if err := p.Addr.UnmarshalBinary(address); err != nil {
			return n, err
		}
		rest = rest[len(item):]
		if n == 0 {
			p.Data = item
		} else {
			p.Data = p.Buffer(len(item))[:copy(p.Buffer(len(item)), item)]
		}
		n++
	}
	if len(rest) > 0 {
		return n, fmt.Errorf("%w: %d bytes behind the last packet", errBadBatch, len(rest))
	}
	return n, nil
}

// next returns the item at the start of rest: up to the length in its IP header, or up to its terminating
// zero (api.md 7). The last one has all that is left.
func (b *batch) next(rest []byte, last bool) (item []byte, ok bool) {
	switch b.layer {
	case packet.LayerFlow, packet.LayerSocket:
		return nil, true
	case packet.LayerReflect:
		end := bytes.IndexByte(rest, 0) + 1
		return rest[:end:end], end > 0
	}
	if last {
		return rest, len(rest) > 0
	}
	item, err := engine.Whole(rest)
	return item[:len(item):len(item)], err == nil
}

// sendMax is how many bytes of packets a SEND carries: whatever one packet has, and of many what is
// worth the while.
const sendMax = 4 * packetMax

// outgoing is the batch that a send call is about to send.
type outgoing struct {
	data      []byte
	addresses []byte
	count     int
}

// fill replaces the contents with as many of ps as there is room for. It returns how many of ps it has dealt
// with; those that are no whole packets, or must not go on, are left out, and err is the reason of the
// last such one. Nothing but the interface is passed on of the layer data.
func (o *outgoing) fill(ps []packet.Packet) (done int, err error) {
	o.data, o.addresses, o.count = o.data[:0], o.addresses[:0], 0
	for done < len(ps) && o.count < batchMax {
		p := &ps[done]
		data, bad := engine.Whole(p.Data)
		if bad == nil {
			bad = checkHops(p)
		}
		if bad != nil {
			err = bad
			done++
			continue
		}
		if o.count > 0 && len(o.data)+len(data) > sendMax {
			break
		}
		o.data = append(o.data, data...)
		o.addresses, _ = p.Addr.AppendBinary(o.addresses) // never fails
		clear(o.addresses[len(o.addresses)-packet.AddressSize+16+unionUsed[packet.LayerNetwork]:])
		o.count++
		done++
	}
	return done, err
}

// checkHops refuses the impostors that the driver would refuse. It does so packet by packet, the driver
// with one error for a whole batch.
func checkHops(p *packet.Packet) error {
	hops := p.Data[8]
	if p.Data[0]>>4 == 6 {
		hops = p.Data[7]
	}
	if p.Addr.Impostor && hops <= 1 {
		return engine.ErrHopLimit
	}
	return nil
}
