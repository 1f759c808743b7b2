package redirect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
)

// The numbers of SOCKS 5 (RFC 1928, RFC 1929).
const (
	socksVersion   = 5
	socksConnect   = 1
	socksAssociate = 3
	socksIPv4      = 1
	socksName      = 3
	socksIPv6      = 4
	socksOpen      = 0 // methods: no authentication
	socksPassword  = 2 // user and password
	socksNoMethod  = 0xFF
	authVersion    = 1 // of the negotiation of user and password
)

// socksReplies are the refusals of a proxy (RFC 1928 section 6).
var socksReplies = [...]error{
	1: errors.New("general failure of the proxy"),
	2: errors.New("its rules do not allow the connection"),
	3: syscall.ENETUNREACH,
	4: syscall.EHOSTUNREACH,
	5: syscall.ECONNREFUSED,
	6: errors.New("the TTL has expired"),
	7: errors.New("it does not know the command"),
	8: errors.New("it does not know the kind of address"),
}

// socks connects through a SOCKS 5 proxy.
func (p *proxy) socks(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	if network != "udp" {
		return p.greet(ctx, func(c net.Conn) error {
			_, err := p.socksAsk(c, socksConnect, to)
			return err
		})
	}
	var relay netip.AddrPort
	control, err := p.greet(ctx, func(c net.Conn) (err error) {
		any := netip.AddrPortFrom(netip.IPv4Unspecified(), 0) // the port is not known yet
		if to.Addr().Is6() {
			any = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		}
		relay, err = p.socksAsk(c, socksAssociate, any)
		return err
	})
	if err != nil {
		return nil, err
	}
	if relay.Addr().IsUnspecified() { // the proxy's own address
		if at, err := netip.ParseAddrPort(control.RemoteAddr().String()); err == nil {
			relay = netip.AddrPortFrom(at.Addr(), relay.Port())
		}
	}
	c, err := p.base(ctx, "udp", relay.String())
	if err != nil {
		_ = control.Close()
		return nil, err
	}
	a := &association{Conn: c, control: control, to: to, head: appendSocksAddr([]byte{0, 0, 0}, to)}
	go a.watch()
	return a, nil
}

// socksAsk agrees with the proxy on the authentication, sends a request, and returns the address in the answer.
func (p *proxy) socksAsk(c net.Conn, command byte, to netip.AddrPort) (netip.AddrPort, error) {
	hello := []byte{socksVersion, 1, socksOpen}
	if p.user != nil {
		hello = []byte{socksVersion, 2, socksOpen, socksPassword}
	}
	if _, err := c.Write(hello); err != nil {
		return netip.AddrPort{}, err
	}
	var answer [2]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("its greeting: %w", err)
	}
	switch {
	case answer[0] != socksVersion:
		return netip.AddrPort{}, fmt.Errorf("it does not speak SOCKS 5: it begins with %#02x", answer[0])
	case answer[1] == socksPassword && p.user != nil:
		if err := p.socksAuthenticate(c); err != nil {
			return netip.AddrPort{}, err
		}
	case answer[1] == socksNoMethod:
		return netip.AddrPort{}, errors.New("it wants an authentication other than the one given (user and password in the URL)")
	case answer[1] != socksOpen:
		return netip.AddrPort{}, fmt.Errorf("it chose the authentication %d, which was not offered", answer[1])
	}
	if _, err := c.Write(appendSocksAddr([]byte{socksVersion, command, 0}, to)); err != nil {
		return netip.AddrPort{}, err
	}
	return readSocksReply(c)
}

func (p *proxy) socksAuthenticate(c net.Conn) error {
	user := p.user.Username()
	password, _ := p.user.Password()
	b := append([]byte{authVersion, byte(len(user))}, user...)
	b = append(append(b, byte(len(password))), password...)
	if _, err := c.Write(b); err != nil {
		return err
	}
	var answer [2]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return fmt.Errorf("its answer to user and password: %w", err)
	}
	if answer[1] != 0 {
		return errors.New("it does not accept the user and password")
	}
	return nil
}

// appendSocksAddr appends an address in the form of requests and datagrams.
func appendSocksAddr(b []byte, a netip.AddrPort) []byte {
	if addr := a.Addr().Unmap().WithZone(""); addr.Is4() {
		b = append(append(b, socksIPv4), addr.AsSlice()...)
	} else {
		b = append(append(b, socksIPv6), addr.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, a.Port())
}

// readSocksReply reads the answer to a request and returns its address: the zero address if it is a name.
func readSocksReply(r io.Reader) (netip.AddrPort, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("its answer: %w", err)
	}
	switch n := int(head[1]); {
	case head[0] != socksVersion:
		return netip.AddrPort{}, fmt.Errorf("its answer is not of SOCKS 5: it begins with %#02x", head[0])
	case n >= len(socksReplies):
		return netip.AddrPort{}, fmt.Errorf("it refuses with the unknown reason %d", n)
	case n != 0:
		return netip.AddrPort{}, fmt.Errorf("it answers: %w", socksReplies[n])
	}
	size := 0
	switch head[3] {
	case socksIPv4:
		size = 4
	case socksIPv6:
		size = 16
	case socksName:
		var n [1]byte
		if _, err := io.ReadFull(r, n[:]); err != nil {
			return netip.AddrPort{}, fmt.Errorf("its answer: %w", err)
		}
		size = int(n[0])
	default:
		return netip.AddrPort{}, fmt.Errorf("its answer has an address of the unknown kind %d", head[3])
	}
	b := make([]byte, size+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return netip.AddrPort{}, fmt.Errorf("its answer: %w", err)
	}
	port := binary.BigEndian.Uint16(b[size:])
	if head[3] == socksName { // probably the proxy's own name: use the address of the control connection
		return netip.AddrPortFrom(netip.IPv4Unspecified(), port), nil
	}
	a, _ := netip.AddrFromSlice(b[:size])
	return netip.AddrPortFrom(a.Unmap(), port), nil
}

// association is a UDP socket through a SOCKS 5 proxy. It lasts as long as its control connection.
type association struct {
	net.Conn // to the relay
	control  net.Conn
	to       netip.AddrPort
	head     []byte // header of each datagram sent
}

// watch ends the socket when the proxy ends the association.
func (a *association) watch() {
	_, _ = io.Copy(io.Discard, a.control)
	_ = a.Close()
}

// Close ends the association.
func (a *association) Close() error {
	_ = a.control.Close()
	return a.Conn.Close()
}

// RemoteAddr returns the destination.
func (a *association) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(a.to) }

// Write sends a datagram to the destination.
func (a *association) Write(b []byte) (int, error) {
	if _, err := a.Conn.Write(append(append(make([]byte, 0, len(a.head)+len(b)), a.head...), b...)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Read returns a datagram of the destination, and skips others.
func (a *association) Read(b []byte) (int, error) {
	buf := make([]byte, datagramBuffer)
	for {
		n, err := a.Conn.Read(buf)
		if err != nil {
			return 0, err
		}
		if from, payload, ok := cutSocksDatagram(buf[:n]); ok && from == netip.AddrPortFrom(a.to.Addr().Unmap().WithZone(""), a.to.Port()) {
			return copy(b, payload), nil
		}
	}
}

// cutSocksDatagram returns the payload of a datagram of the relay, and its sender. It refuses fragments, which no proxy
// makes.
func cutSocksDatagram(b []byte) (from netip.AddrPort, payload []byte, ok bool) {
	if len(b) < 4 || b[2] != 0 {
		return from, nil, false
	}
	size := map[byte]int{socksIPv4: 4, socksIPv6: 16}[b[3]]
	if size == 0 || len(b) < 4+size+2 {
		return from, nil, false
	}
	a, _ := netip.AddrFromSlice(b[4 : 4+size])
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(b[4+size:])), b[4+size+2:], true
}
