//go:build linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// The web server's answer, and the rewritten one: TCP counts bytes, so both have the same length.
const (
	page        = "The web server of host B greets you."
	pageChanged = "The web server of host B is diverted"
)

// web is a web server on B.
type web struct {
	server *http.Server
	done   chan error
	bodies chan string // of the requests
}

// serveHTTP starts the server for both families.
func (d *demo) serveHTTP() (*web, error) {
	l, err := d.B.Listen("tcp", fmt.Sprintf(":%d", portHTTP))
	if err != nil {
		return nil, err
	}
	w := &web{done: make(chan error, 1), bodies: make(chan string, 16)}
	w.server = &http.Server{Handler: w, ReadTimeout: 10 * time.Second}
	go func() { w.done <- w.server.Serve(l) }()
	return w, nil
}

// ServeHTTP answers every request with the page.
func (w *web) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(io.LimitReader(r.Body, 1000))
	if err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case w.bodies <- string(b):
	default: // nobody waits for it
	}
	io.WriteString(out, page)
}

// Close ends the server and its connections.
func (w *web) Close() error {
	err := w.server.Close()
	if end := <-w.done; !errors.Is(end, http.ErrServerClosed) {
		err = errors.Join(err, end)
	}
	return err
}

// client returns a client on A that opens a connection for each request.
func (d *demo) client() *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return d.A.Dial(ctx, network, addr)
			},
		},
	}
}

// url is the server's address.
func url(addr netip.Addr) string {
	return fmt.Sprintf("http://%v/", netip.AddrPortFrom(addr, portHTTP))
}

// get fetches the page.
func (d *demo) get(addr netip.Addr) (string, error) {
	r, err := d.client().Get(url(addr))
	if err != nil {
		return "", err
	}
	return body(r)
}

// post sends a form and returns the text that the server received and its answer.
func (d *demo) post(w *web, addr netip.Addr, form string) (received, answer string, err error) {
	r, err := d.client().Post(url(addr), "application/x-www-form-urlencoded", strings.NewReader(form))
	if err != nil {
		return "", "", err
	}
	answer, err = body(r)
	if err != nil {
		return "", "", err
	}
	return <-w.bodies, answer, nil
}

func body(r *http.Response) (string, error) {
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, 1000))
	return string(b), err
}
