package inject

import (
	"errors"
	"fmt"
)

var (
	// ErrMalformed says that a packet is not one whole IPv4 or IPv6 packet: its version, its header
	// length or its length field does not agree with its bytes.
	ErrMalformed = errors.New("inject: malformed IP packet")

	// ErrTooBig says that a packet is longer than its path carries and must not be fragmented.
	// The error itself is a *TooBigError, which names the sizes.
	ErrTooBig = errors.New("inject: packet too big")

	// ErrNoSource says that an IPv4 packet has the source 0.0.0.0, which raw sockets cannot send:
	// the kernel would put an address of its own choice in its place (raw_send_hdrinc, net/ipv4/raw.c).
	ErrNoSource = errors.New("inject: IPv4 source address 0.0.0.0 cannot be sent")

	// ErrNotSegmentable says that a packet cannot be cut into TCP segments or UDP datagrams: it is a
	// fragment, of another protocol, or its checksum covers a final destination that its routing header does not tell.
	ErrNotSegmentable = errors.New("inject: packet cannot be segmented")

	// ErrNotFragmentable says that a packet cannot be cut into fragments of the wanted size.
	ErrNotFragmentable = errors.New("inject: packet cannot be fragmented")

	// ErrNoInterface is in every *InterfaceError.
	ErrNoInterface = errors.New("no such interface")
)

// TooBigError is ErrTooBig with the sizes, in bytes of the whole IP packet.
type TooBigError struct {
	Size int // length of the packet
	MTU  int // of the path; 0 if the kernel did not say
}

func (e *TooBigError) Error() string {
	return fmt.Sprintf("inject: packet of %d bytes is above the path's MTU of %d", e.Size, e.MTU)
}

// Unwrap makes errors.Is(err, ErrTooBig) true.
func (e *TooBigError) Unwrap() error { return ErrTooBig }

// InterfaceError says that a packet could not be injected because of its interface.
type InterfaceError struct {
	Index uint32 // interface index, as in the address
	Err   error  // ErrNoInterface, or the kernel's error
}

func (e *InterfaceError) Error() string {
	return fmt.Sprintf("inject: interface %d: %v", e.Index, e.Err)
}

// Unwrap returns the cause. errors.Is(err, ErrNoInterface) tells a missing interface.
func (e *InterfaceError) Unwrap() error { return e.Err }

// More causes of an *InterfaceError.
var (
	// ErrInterfaceDown says that the interface is down or has no carrier, so that nothing can have come
	// in on it.
	ErrInterfaceDown = errors.New("interface is down")

	// ErrNoRedirect says that this kernel, or this container, cannot hand a packet to an interface as
	// received: it lacks TUN/TAP (/dev/net/tun) or traffic control with u32 and mirred. The chain
	// has the cause.
	ErrNoRedirect = errors.New("inbound injection is not available")
)
