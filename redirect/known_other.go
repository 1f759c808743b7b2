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

// tries is the number of ports to try.
const tries = 20

// dialKnown connects from a port that it first marks as the program's, in both families, and returns the marks that it
// made. Windows cannot connect a socket that was bound by hand, so the port is a random one. If another program has this
// port and begins to connect from it at this very moment, that connection passes as the program's.
func (l *Listener) dialKnown(ctx context.Context, network, address string, _ func(string, string, syscall.RawConn) error) (c net.Conn, known []dialKey, err error) {
	for range tries {
		port := firstDynamic + uint16(rand.N(1<<16-firstDynamic))
		d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(port)}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{Port: int(port)}
		}
		known = []dialKey{{port, network, false}, {port, network, true}}
		for _, k := range known {
			l.dials.add(k)
		}
		if c, err = l.options.Connect(ctx, &d, network, address); !portTaken(err) {
			return c, known, err
		}
		for _, k := range known {
			l.dials.remove(k)
		}
	}
	return nil, nil, fmt.Errorf("no free port after %d tries: %w", tries, err)
}
