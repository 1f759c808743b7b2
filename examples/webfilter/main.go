// Webfilter blocks the web sites in a file, one name per line, over HTTP, TLS and QUIC. The file may change.
//
//	webfilter blocked.txt
package main

import (
	"context"
	"errors"
	"log"
	"os"
	"os/signal"

	"github.com/opendivert/divert/web"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: webfilter FILE")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	hosts := web.NewHosts()
	err := hosts.Follow(ctx, os.Args[1], func(err error) {
		if err != nil {
			log.Print(err) // the list stays unchanged
		}
	})
	if err != nil {
		log.Fatal(err)
	}
	f, err := web.Open(web.Config{
		Hosts:   hosts,
		Blocked: func(e web.Event) { log.Printf("blocked %s %q for %v", e.Protocol, e.Host, e.Src) },
		Report:  func(err error) { log.Print(err) },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	log.Printf("begun with %d names", hosts.Len())
	if err := f.Run(ctx); !errors.Is(err, context.Canceled) {
		log.Print(err)
	}
	s := f.Stats()
	log.Printf("%d names judged, %d blocked", s.HTTP+s.TLS+s.QUIC, s.Blocked)
}
