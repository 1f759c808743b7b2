package redirect

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/opendivert/divert"
)

// connect connects through an HTTP proxy.
func (p *proxy) connect(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "tcp" {
		return nil, fmt.Errorf("%w: HTTP CONNECT carries TCP only; use a SOCKS 5 proxy for UDP", divert.ErrNotSupported)
	}
	var rest *bufio.Reader
	c, err := p.greet(ctx, func(c net.Conn) (err error) {
		rest, err = p.askConnect(c, address)
		return err
	})
	if err != nil {
		return nil, err
	}
	if rest.Buffered() > 0 { // bytes that the destination has already sent
		return &buffered{c, rest}, nil
	}
	return c, nil
}

// answerLimit is the greatest length of the head of a proxy's answer.
const answerLimit = 64 << 10

// askConnect asks for a tunnel, and returns a reader of the bytes behind the answer.
func (p *proxy) askConnect(c net.Conn, address string) (*bufio.Reader, error) {
	r := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	r.Header.Set("User-Agent", "divert")
	if p.user != nil {
		password, _ := p.user.Password()
		r.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(p.user.Username()+":"+password)))
	}
	if err := r.Write(c); err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: c, N: answerLimit}
	in := bufio.NewReader(limited)
	answer, err := http.ReadResponse(in, r)
	switch {
	case err != nil:
		return nil, fmt.Errorf("its answer to CONNECT: %w", err)
	case answer.StatusCode == http.StatusProxyAuthRequired:
		return nil, fmt.Errorf("it wants a user and password that it knows: %s", answer.Status)
	case answer.StatusCode/100 != 2:
		return nil, fmt.Errorf("it refuses to connect to %s: %q", address, answer.Status)
	}
	limited.N = 1<<63 - 1
	return in, nil
}

// buffered is a connection whose first bytes have already been read.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

// Read returns the buffered bytes first.
func (c *buffered) Read(b []byte) (int, error) { return c.in.Read(b) }

// CloseWrite ends one direction.
func (c *buffered) CloseWrite() error { return closeWrite(c.Conn) }

// closeWrite ends one direction of a connection, if it can.
func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}
