// Nat is a NAT for a router: hosts behind it share its address on one interface. The manual: docs/nat.md.
//
//	nat -out eth1 -forward tcp:8080=10.0.0.2:80 -nptv6 fd00:1::/48=2001:db8:1::/48
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/opendivert/divert/examples/nat/table"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("nat: ")
	var o options
	flag.StringVar(&o.out, "out", "", "the `interface` whose IPv4 address the hosts behind this one share")
	flag.Func("inside", "`PREFIX` of IPv4 behind this host; may be repeated (default the private networks of RFC 1918 and RFC 6598)", o.addInside)
	flag.Func("forward", "`PROTOCOL:PORT=ADDR:PORT`: lead a port of tcp or udp to a host behind this one; may be repeated", o.addForward)
	flag.StringVar(&o.prefixes, "nptv6", "", "`INSIDE=OUTSIDE`: translate the one prefix of IPv6 to the other")
	flag.IntVar(&o.most, "most", 16384, "mappings at once")
	flag.IntVar(&o.perHost, "host", 4096, "mappings of one host behind this one")
	flag.DurationVar(&o.timeouts.UDP, "udp-timeout", table.UDPIdle, "how long a mapping of UDP lasts without packets from behind this host")
	flag.DurationVar(&o.timeouts.Established, "tcp-timeout", table.TCPEstablished, "how long an established connection lasts without packets")
	flag.DurationVar(&o.timeouts.Transitory, "tcp-transitory-timeout", table.TCPTransitory, "how long one that opens or closes lasts")
	flag.DurationVar(&o.timeouts.ICMP, "icmp-timeout", table.ICMPIdle, "how long the mapping of an echo lasts")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := fmt.Errorf("there is an argument too many: %s", flag.Arg(0))
	if flag.NArg() == 0 {
		err = run(ctx, o)
	}
	if err != nil {
		stop()
		log.Fatal(err)
	}
}
