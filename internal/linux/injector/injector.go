//go:build linux

// Package injector injects the packets of a handle that are not, or no longer, queued ones. It opens the ways of package
// inject when they are first needed, and tells the handle's rules about injected packets.
package injector

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/inject"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/nexthop"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// Injector injects packets that are not, or no longer, a queued one. Its sockets and its device are
// made when they are first needed.
type Injector struct {
	ns    *netns.Namespace
	entry *rules.Entry // the handle's
	layer packet.Layer

	mu       sync.Mutex
	closed   bool
	origin   *rules.Credentials // nil before the first packet
	outbound *inject.Outbound
	inbound  *inject.Inbound
	forward  *inject.Forward
	hops     *nexthop.Hops
	noHops   bool // they cannot be known
}

// New returns the injector of a handle of a layer, with its entry among the rules.
func New(ns *netns.Namespace, entry *rules.Entry, layer packet.Layer) *Injector {
	return &Injector{ns: ns, entry: entry, layer: layer}
}

// Inject injects a packet the way its address says.
func (i *Injector) Inject(b []byte, a *packet.Address) error {
	ifIdx := a.Network().IfIdx
	if i.layer == packet.LayerForward {
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

// Ready prepares the way that WithInbound asks for, and fails with engine.ErrNotSupported where there is none.
func (i *Injector) Ready() (err error) {
	var way interface{ Ready() error }
	if i.layer == packet.LayerForward {
		way, err = i.through()
	} else {
		way, err = i.in()
	}
	if err == nil {
		err = way.Ready()
	}
	if errors.Is(err, inject.ErrNoRedirect) {
		err = fmt.Errorf("%w: %w (divert doctor says what to do)", engine.ErrNotSupported, err)
	}
	return err
}

// vouch tells the handle's rules how to know injected packets, before there are any. The caller holds the lock.
func (i *Injector) vouch() error {
	if i.origin != nil {
		return nil
	}
	c := rules.NewCredentials()
	// Without the handle's rules, no rule has to know the packets.
	if err := i.entry.Vouch(c); err != nil && !errors.Is(err, rules.ErrGone) {
		return err
	}
	i.origin = &c
	return nil
}

// opened returns a way, which it opens in the injector's namespace when it is first needed.
func opened[T any](i *Injector, way **T, open func() (*T, error)) (*T, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed:
		return nil, net.ErrClosed
	case *way != nil:
		return *way, nil
	}
	if err := i.vouch(); err != nil {
		return nil, err
	}
	err := i.ns.Do(func() (err error) {
		*way, err = open()
		return err
	})
	return *way, err
}

// out returns the way out.
func (i *Injector) out() (*inject.Outbound, error) {
	return opened(i, &i.outbound, func() (*inject.Outbound, error) { return inject.NewOutbound(i.origin.Own) })
}

// in returns the way in.
func (i *Injector) in() (*inject.Inbound, error) {
	return opened(i, &i.inbound, func() (*inject.Inbound, error) { return inject.NewInbound(i.origin.Seal, i.origin.Served) })
}

// Hops returns the next hops of the injector's namespace, nil where they cannot be known. Close closes them.
func (i *Injector) Hops() *nexthop.Hops {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.hops != nil || i.noHops || i.closed {
		return i.hops
	}
	var err error
	i.hops, err = nexthop.Open(i.ns.Do)
	i.noHops = err != nil
	return i.hops
}

// through returns the way for forwarded packets.
func (i *Injector) through() (*inject.Forward, error) {
	return opened(i, &i.forward, func() (*inject.Forward, error) {
		return inject.NewForward(i.origin.Seal, i.origin.Own, i.origin.Served)
	})
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

// Close gives sockets and device back.
func (i *Injector) Close() error {
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
	if i.hops != nil {
		errs = append(errs, i.hops.Close())
	}
	return errors.Join(errs...)
}
