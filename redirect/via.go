package redirect

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"

	"github.com/opendivert/divert"
)

// proxyKind is a way to connect through a proxy.
type proxyKind struct {
	port string // default port
	dial func(p *proxy, ctx context.Context, network, address string) (net.Conn, error)
	tls  bool
}

// proxyKinds are the schemes of proxies' URLs.
var proxyKinds = map[string]proxyKind{
	"socks5": {port: "1080", dial: (*proxy).socks},
	"http":   {port: "80", dial: (*proxy).connect},
	"https":  {port: "443", dial: (*proxy).connect, tls: true},
}

// proxy is a proxy for connections.
type proxy struct {
	kind    proxyKind
	address string // host and port
	host    string
	user    *url.Userinfo
	base    DialFunc
}

// NewDialer returns a function that connects through a proxy, which it reaches by base:
//
//   - socks5://user:password@host:port, by SOCKS 5 (RFC 1928, 1929): TCP, and UDP by UDP ASSOCIATE
//   - http://user:password@host:port, by CONNECT (RFC 9110 section 9.3.6) with Basic authentication: TCP only; with UDP it fails
//     with divert.ErrNotSupported
//   - https://…, the same inside TLS
//
// User and password may be left out, and the port if it is 1080, 80 and 443 respectively. If via is nil, NewDialer
// returns base. It fails with divert.ErrInvalid for any other URL. If the proxy reports that the destination refuses, the
// returned function fails with syscall.ECONNREFUSED; if the destination cannot be reached, with syscall.EHOSTUNREACH or
// syscall.ENETUNREACH.
func NewDialer(via *url.URL, base DialFunc) (DialFunc, error) {
	if via == nil {
		return base, nil
	}
	kind, ok := proxyKinds[via.Scheme]
	switch {
	case !ok:
		return nil, fmt.Errorf("redirect: %w: proxy %s: there is no way %q; it is socks5, http or https", divert.ErrInvalid, via.Redacted(), via.Scheme)
	case via.Hostname() == "":
		return nil, fmt.Errorf("redirect: %w: proxy %s: no host; write %s://host:port", divert.ErrInvalid, via.Redacted(), via.Scheme)
	case via.Path != "" && via.Path != "/" || via.RawQuery != "" || via.Fragment != "":
		return nil, fmt.Errorf("redirect: %w: proxy %s: there must be nothing behind the port", divert.ErrInvalid, via.Redacted())
	}
	if password, _ := via.User.Password(); kind.port == "1080" && (len(via.User.Username()) > 255 || len(password) > 255) {
		return nil, fmt.Errorf("redirect: %w: proxy %s: SOCKS 5 takes 255 bytes of user and password at most", divert.ErrInvalid, via.Redacted())
	}
	port := via.Port()
	if port == "" {
		port = kind.port
	}
	p := &proxy{kind: kind, address: net.JoinHostPort(via.Hostname(), port), host: via.Hostname(), user: via.User, base: base}
	return p.dial, nil
}

func (p *proxy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := p.kind.dial(p, ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("through the proxy %s: %w", p.address, err)
	}
	return c, nil
}

// greet connects to the proxy and has f talk to it until ctx ends.
func (p *proxy) greet(ctx context.Context, f func(net.Conn) error) (net.Conn, error) {
	c, err := p.base(ctx, "tcp", p.address)
	if err != nil {
		return nil, fmt.Errorf("cannot be reached: %v", err) // not %w: ECONNREFUSED would mean the destination
	}
	if p.kind.tls {
		c = tls.Client(c, &tls.Config{ServerName: p.host})
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	err = f(c)
	if !stop() && err == nil || ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}
