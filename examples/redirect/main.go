// Redirect takes over the connections that match a filter, prints their source and destination, and connects them.
//
//	redirect 'tcp.DstPort == 80'
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	"github.com/opendivert/divert/redirect"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	l, err := redirect.Listen(ctx, strings.Join(os.Args[1:], " "), redirect.Options{Hold: true})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	log.Print(l.Description())
	for c, err := l.Accept(); err == nil; c, err = l.Accept() {
		who, _ := c.Process()
		fmt.Printf("%s[%d] to %v\n", who.Name, who.ID, c.OriginalDst())
		go func() {
			up, err := l.Dial(ctx, c)
			if err != nil {
				c.Reset()
				return
			}
			redirect.Relay(c, up)
		}()
	}
}
