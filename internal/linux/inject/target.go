//go:build linux

package inject

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// prepare makes one of the things that try lacks for a packet to ifIdx: first the knowledge of the namespace, then the device,
// which loopback packets do not need.
func (in *Inbound) prepare(ifIdx uint32) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed:
		return net.ErrClosed
	case in.local == nil:
		return in.readAddresses()
	case in.targets[ifIdx] == nil:
		return in.addTarget(ifIdx)
	case in.device == nil:
		return in.addDevice(ifIdx)
	}
	return nil // another goroutine was faster
}

func (in *Inbound) readAddresses() error {
	addrs, err := in.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("inject: addresses: %w", err)
	}
	in.local = make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			in.local[ip.Unmap()] = struct{}{}
		}
	}
	return nil
}

func (in *Inbound) addTarget(ifIdx uint32) error {
	link, err := in.find(ifIdx)
	if err != nil {
		return &InterfaceError{Index: ifIdx, Err: err}
	}
	t := &target{
		index:    uint32(link.Attrs().Index),
		loopback: link.Attrs().Flags&net.FlagLoopback != 0,
	}
	if in.device != nil {
		if err := in.lead(t); err != nil {
			return &InterfaceError{Index: ifIdx, Err: err}
		}
	}
	in.targets[ifIdx] = t
	return nil
}

// find returns the interface on which packets received on ifIdx come to the IP stack.
func (in *Inbound) find(ifIdx uint32) (netlink.Link, error) {
	if ifIdx == 0 || ifIdx > 1<<31-1 {
		return nil, ErrNoInterface
	}
	link, err := in.nl.LinkByIndex(int(ifIdx))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, ErrNoInterface
	}
	if err != nil {
		return nil, err
	}
	if master := link.Attrs().MasterIndex; master != 0 {
		if m, err := in.nl.LinkByIndex(master); err == nil && m.Type() == "bridge" {
			link = m
		}
	}
	// mirred silently drops packets that it cannot hand over.
	if flags := link.Attrs().RawFlags; flags&unix.IFF_UP == 0 || flags&unix.IFF_LOWER_UP == 0 {
		return nil, ErrInterfaceDown
	}
	if in.device != nil && int(in.device.index) == link.Attrs().Index {
		return nil, fmt.Errorf("it is the device that packets are injected with: %w", unix.ELOOP)
	}
	return link, nil
}

// lead makes the device lead to t. If there is no place for one more target, it forgets all others first.
func (in *Inbound) lead(t *target) error {
	number, err := in.device.lead(t.index)
	if errors.Is(err, unix.ENOSPC) {
		if err := in.forget(); err != nil {
			return err
		}
		number, err = in.device.lead(t.index)
	}
	if errors.Is(err, unix.ENODEV) {
		return ErrNoInterface // it has gone since it was found
	}
	if err != nil {
		return noRedirect(err)
	}
	t.header4, t.header6 = newFrameHeader(in.seal, number, 4), newFrameHeader(in.seal, number, 6)
	return nil
}

// addDevice makes the device and its way to all targets known so far.
func (in *Inbound) addDevice(ifIdx uint32) error {
	if err := in.makeDevice(); err != nil {
		return &InterfaceError{Index: ifIdx, Err: err}
	}
	for i, t := range in.targets {
		if i == ifIdx || in.lead(t) != nil {
			delete(in.targets, i) // the next packet to a target that cannot be reached fails
		}
	}
	return in.addTarget(ifIdx)
}

// makeDevice makes the device, which leads nowhere yet.
func (in *Inbound) makeDevice() error {
	if in.tunErr == nil {
		in.device, in.tunErr = openDevice(in.tun, in.events.fd, in.nl, in.seal)
		in.tunErr = noRedirect(in.tunErr)
	}
	return in.tunErr
}

// Ready makes the device if there is none, and fails with ErrNoRedirect where there can be none: then Send succeeds for loopback
// packets only.
func (in *Inbound) Ready() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed:
		return net.ErrClosed
	case in.device != nil:
		return nil
	}
	return in.makeDevice()
}

func noRedirect(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrNoRedirect, err)
}
