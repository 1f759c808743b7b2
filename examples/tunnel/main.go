//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/opendivert/divert"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("tunnel: ")
	var o options
	via := flag.String("via", "", "`URL` of the proxy: socks5://user:password@host:port, or http://… and https://… for TCP alone")
	flag.BoolVar(&o.forward, "forward", false, "take the traffic that this host routes for others, instead of its own")
	flag.IntVar(&o.most, "most", 4096, "connections and exchanges at once; more are refused")
	flag.DurationVar(&o.idle, "idle", 2*time.Minute, "an exchange of UDP ends when it was silent for so long")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: tunnel -via URL [flags] FILTER")
		flag.PrintDefaults()
	}
	flag.Parse()
	o.filter = strings.Join(flag.Args(), " ")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, *via); err != nil {
		stop()
		log.Fatal(err)
	}
}

// run runs the program, from its flags to ctx's end.
func run(ctx context.Context, o options, via string) (err error) {
	switch {
	case o.filter == "":
		return errors.New(`no filter: write one, such as "tcp.DstPort == 80"`)
	case via == "":
		return errors.New("no proxy: -via socks5://host:port names it")
	case o.most < 1:
		return fmt.Errorf("-most %d: it must be 1 or more", o.most)
	case o.idle < time.Second:
		return fmt.Errorf("-idle %v: it must be a second or more", o.idle)
	}
	if o.via, err = url.Parse(via); err != nil {
		return fmt.Errorf("-via: %w", errors.Unwrap(err)) // the outer error shows the password
	}
	if o.proxies, err = addresses(ctx, o.via.Hostname()); err != nil {
		return fmt.Errorf("-via: %w", err)
	}
	t, err := newTunnel(ctx, o)
	if err != nil {
		return err
	}
	log.Printf("%s through %s (%s). Ctrl-C ends.", o.filter, o.via.Redacted(), t.handle.Description())
	err = t.run(ctx)
	log.Print(&t.counts)
	if ctx.Err() != nil && (err == nil || errors.Is(err, net.ErrClosed)) {
		return nil
	}
	if errors.Is(err, divert.ErrRulesGone) {
		return fmt.Errorf("%w: nothing goes through the tunnel any more", err)
	}
	return err
}

// addresses returns the addresses of the proxy's host, to which packets never go through the tunnel.
func addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if host == "" {
		return nil, errors.New("the URL has no host; write socks5://host:port")
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	as, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i, a := range as {
		as[i] = a.Unmap()
	}
	return as, err
}
