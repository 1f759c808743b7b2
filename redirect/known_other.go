//go:build !unix

package redirect

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
)

// firstDynamic is the first port that no service has (RFC 6335 section 6).
const firstDynamic = 49152

// tries is how many ports are tried.
const tries = 20

// dialKnown connects from a port that it makes known as the program's before, and returns that port. Windows cannot connect a socket
// that was bound by hand, so the port is a random one. If somebody has it, and begins to connect from it at this very moment, that
// connection passes as the program's.
func (l *Listener) dialKnown(ctx context.Context, network, address string, _ func(string, string, syscall.RawConn) error) (c net.Conn, port uint16, err error) {
	for range tries {
		port = firstDynamic + uint16(rand.N(1<<16-firstDynamic))
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(port)}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{Port: int(port)}
		}
		l.dials.add(port, network)
		if c, err = l.options.Connect(ctx, &d, network, address); !portTaken(err) {
			return c, port, err
		}
		l.dials.remove(port, network)
	}
	return nil, 0, fmt.Errorf("no free port after %d tries: %w", tries, err)
}
