// Badline makes the path to a UDP port a bad line, in both directions: it delays each packet and loses one in ten,
// until it is interrupted. With the same seed it loses the same packets of a flow again.
//
//	badline 7777 20ms 1
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/opendivert/divert/impair"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: badline PORT LAG SEED")
	}
	port, err := strconv.ParseUint(os.Args[1], 10, 16)
	if err != nil {
		log.Fatal(err)
	}
	lag, err := time.ParseDuration(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	seed, err := strconv.ParseUint(os.Args[3], 10, 64)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	i, err := impair.Open(impair.Config{
		Seed: seed,
		Rules: []impair.Rule{{
			Filter: fmt.Sprintf("udp.DstPort == %d or udp.SrcPort == %[1]d", port),
			Lag:    lag,
			Loss:   0.1,
		}},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer i.Close()
	log.Printf("port %d has a bad line", port)
	if err := i.Run(ctx); err != nil { // held packets go on when ctx ends
		log.Print(err)
	}
	s := i.Stats().Rules[0]
	log.Printf("%d packets delayed, %d lost", s.Delayed, s.Lost)
}
