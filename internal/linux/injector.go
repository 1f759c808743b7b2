//go:build linux

package linux

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/inject"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// injector injects packets that are not, or no longer, a queued one. Its sockets and its device are
// made when they are first needed.
type injector struct {
	ns *netns.Namespace

	mu       sync.Mutex
	closed   bool
	origin   *rules.Credentials // nil before the first packet
	outbound *inject.Outbound
	inbound  *inject.Inbound
	forward  *inject.Forward
}

// inject injects a packet the way its address says.
// The entry is the handle's.
func (i *injector) inject(entry *rules.Entry, b []byte, a *packet.Address, layer packet.Layer) error {
	ifIdx := a.Network().IfIdx
	if layer == packet.LayerForward {
		f, err := i.through(entry)
		if err != nil {
			return err
		}
		return reason(f.Send(b, ifIdx))
	}
	if a.Outbound {
		out, err := i.out(entry)
		if err != nil {
			return err
		}
		if len(b) > ethernetMTU && isTCP(b) {
			// Captured before segmentation, most likely: longer than its connection's segments.
			return reason(out.SendSegmented(b, ifIdx, 0))
		}
		return reason(out.Send(b, ifIdx))
	}
	in, err := i.in(entry)
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

// vouch makes the handle's rules know what will be injected, before anything is. The caller holds the lock.
func (i *injector) vouch(entry *rules.Entry) error {
	if i.origin != nil {
		return nil
	}
	c := rules.NewCredentials()
	// Without the handle's rules nobody is left to be passed over.
	if err := entry.Vouch(c); err != nil && !errors.Is(err, rules.ErrGone) {
		return err
	}
	i.origin = &c
	return nil
}

// out returns the way out.
func (i *injector) out(entry *rules.Entry) (*inject.Outbound, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, net.ErrClosed
	case i.outbound != nil:
		return i.outbound, nil
	}
	if err := i.vouch(entry); err != nil {
		return nil, err
	}
	err := i.ns.Do(func() (err error) {
		i.outbound, err = inject.NewOutbound(i.origin.Own)
		return err
	})
	return i.outbound, err
}

// in returns the way in.
func (i *injector) in(entry *rules.Entry) (*inject.Inbound, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, net.ErrClosed
	case i.inbound != nil:
		return i.inbound, nil
	}
	if err := i.vouch(entry); err != nil {
		return nil, err
	}
	err := i.ns.Do(func() (err error) {
		i.inbound, err = inject.NewInbound(i.origin.Seal, i.origin.Served)
		return err
	})
	return i.inbound, err
}

// through returns the way to be forwarded.
func (i *injector) through(entry *rules.Entry) (*inject.Forward, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, net.ErrClosed
	case i.forward != nil:
		return i.forward, nil
	}
	if err := i.vouch(entry); err != nil {
		return nil, err
	}
	err := i.ns.Do(func() (err error) {
		i.forward, err = inject.NewForward(i.origin.Seal, i.origin.Own, i.origin.Served)
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
func (i *injector) close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	var errs []error
	if i.outbound != nil {
		errs = append(errs, i.outbound.Close())
	}
	if i.inbound != nil {
		errs = append(errs, i.inbound.Close())
	}
	if i.forward != nil {
		errs = append(errs, i.forward.Close())
	}
	return errors.Join(errs...)
}
