package windows

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// unionUsed is the size of the part of an address's layer data that the driver fills at each layer, in bytes; it leaves
// the rest as it was (specification: api.md 2.1, quirk).
var unionUsed = [packet.NumLayers]int{8, 8, 64, 64, 32}

// errBadBatch means that the driver's answer is not a batch.
var errBadBatch = errors.New("the driver's answer is malformed")

// batch is the result of a receive call: items back to back, and an address for each.
type batch struct {
	layer     packet.Layer
	data      []byte
	addresses []byte
}

// unpack sets ps from the batch and returns the number of its packets. data may lie in the memory of ps[0], at its start;
// the other packets are copied to memory of their own. A missing address or packet ends the batch with an error, after
// the packets before it.
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

// next returns the item at the start of rest: up to the length in its IP header, or up to its terminating zero (api.md
// 7). The last item is all the rest.
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

// sendMax is the size of the packets in a SEND, in bytes: room for the longest packet, and enough for many to make a
// batch worth while.
const sendMax = 4 * packetMax

// outgoing is the batch of a send call.
type outgoing struct {
	data      []byte
	addresses []byte
	count     int
}

// fill replaces the contents with as many of ps as there is room for. It returns the number of ps dealt with. It leaves
// out those that are not whole packets or must not go on, and returns the reason of the last such one in err. Of the
// layer data it passes on only the interface.
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

// checkHops refuses the impostors that the driver would refuse. It does so packet by packet; the driver would do so with
// one error for a whole batch.
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
