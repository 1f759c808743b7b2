//go:build linux

package linux

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/inject"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/packet"
)

// injector injects packets that are not, or no longer, a queued one. Its sockets and its device are
// made when they are first needed.
type injector struct {
	ns  *netns.Namespace
	key cursor.Key

	mu       sync.Mutex
	closed   bool
	outbound *inject.Outbound
	inbound  *inject.Inbound
	forward  *inject.Forward
}

// inject injects a packet the way its address says.
func (i *injector) inject(b []byte, a *packet.Address, layer packet.Layer) error {
	ifIdx := a.Network().IfIdx
	if layer == packet.LayerForward {
		f, err := i.through()
		if err != nil {
			return err
		}
		return reason(f.Send(b, ifIdx))
	}
	if a.Outbound {
		out, err := i.out()
		if err != nil {
			return err
		}
		if len(b) > ethernetMTU && isTCP(b) {
			// Captured before segmentation, most likely: longer than its connection's segments.
			return reason(out.SendSegmented(b, ifIdx, 0))
		}
		return reason(out.Send(b, ifIdx))
	}
	in, err := i.in()
	if err != nil {
		return err
	}
	return reason(in.Send(b, ifIdx))
}

// ethernetMTU is the length up to which a packet is sent without asking for its path, in bytes.
const ethernetMTU = 1500

// isTCP reports whether a packet is TCP and whole, so that it can be cut into segments.
func isTCP(b []byte) bool {
	var p packet.Parsed
	return p.ParseExact(b) && p.TCPOff >= 0 && !p.Fragment
}

// out returns the way out.
func (i *injector) out() (*inject.Outbound, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, net.ErrClosed
	case i.outbound != nil:
		return i.outbound, nil
	}
	err := i.ns.Do(func() (err error) {
		i.outbound, err = inject.NewOutbound(i.key.Pack(0))
		return err
	})
	return i.outbound, err
}

// in returns the way in.
func (i *injector) in() (*inject.Inbound, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, net.ErrClosed
	case i.inbound != nil:
		return i.inbound, nil
	}
	err := i.ns.Do(func() (err error) {
		// The key 0 has served everybody: no handle is below it.
		i.inbound, err = inject.NewInbound(i.key.Pack(0), cursor.Key(0).Pack(0))
		return err
	})
	return i.inbound, err
}

// through returns the way to be forwarded.
func (i *injector) through() (*inject.Forward, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, net.ErrClosed
	case i.forward != nil:
		return i.forward, nil
	}
	err := i.ns.Do(func() (err error) {
		i.forward, err = inject.NewForward(i.key.Pack(0), cursor.Key(0).Pack(0))
		return err
	})
	return i.forward, err
}

// reason turns an error of an injection into the engine's.
func reason(err error) error {
	for _, r := range [...]struct{ from, to error }{
		{inject.ErrTooBig, engine.ErrTooLarge},
		{inject.ErrNoInterface, engine.ErrNoSuchDevice},
		{inject.ErrMalformed, engine.ErrInvalid},
	} {
		if errors.Is(err, r.from) {
			return fmt.Errorf("%w: %w", r.to, err)
		}
	}
	return err
}

// close gives sockets and device back.
func (i *injector) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	if i.outbound != nil {
		i.outbound.Close()
	}
	if i.inbound != nil {
		i.inbound.Close()
	}
	if i.forward != nil {
		i.forward.Close()
	}
}
