package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/opendivert/divert"
)

// options are the command line's options.
type options struct {
	inline  bool
	capture string
	where   string
	forward bool
	vars    variables
	files   []string
}

func main() {
	o := options{vars: variables{"HOME_NET": "any", "EXTERNAL_NET": "any", "HTTP_PORTS": "80", "HTTP_SERVERS": "any", "DNS_SERVERS": "any"}}
	flag.BoolVar(&o.inline, "inline", false, "inspect packets inline: carry out drop and reject")
	flag.StringVar(&o.capture, "r", "", "read packets from a capture `file` (pcap)")
	flag.StringVar(&o.where, "filter", "not loopback", "packets that are inspected, in both directions alike")
	flag.BoolVar(&o.forward, "forward", false, "inspect packets that this host routes, instead of its own")
	flag.Func("var", "`NAME=VALUE` of a variable in the heads of rules, such as HOME_NET=192.0.2.0/24", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" || value == "" {
			return errors.New("it must be NAME=VALUE")
		}
		o.vars[name] = value
		return nil
	})
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: ids [flags] rules...")
		flag.PrintDefaults()
	}
	flag.Parse()
	if o.files = flag.Args(); len(o.files) == 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o, divert.Open, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "ids:", err)
		os.Exit(1)
	}
}

// opener opens handles: divert.Open, or the method Open of a diverttest.Network.
type opener func(filter string, opts ...divert.Option) (*divert.Handle, error)

// run inspects packets until ctx or the capture ends.
func run(ctx context.Context, o *options, open opener, out, errout io.Writer) error {
	var rules []*rule
	left := 0
	for _, file := range o.files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		more, faults := parseRules(file, string(text), o.vars)
		rules = append(rules, more...)
		for _, err := range faults {
			fmt.Fprintln(errout, "ids:", err)
		}
		left += len(faults)
	}
	if len(rules) == 0 {
		return errors.New("there is no rule that is understood")
	}
	var broken error
	eve := eveWriter(json.NewEncoder(out), func(err error) { broken = err })
	if o.capture != "" {
		e := newEngine(rules, nowhere{}, false, eve)
		if err := e.readCapture(o.capture); err != nil {
			return err
		}
		e.summary(errout, len(rules), left)
		return broken
	}
	opts := []divert.Option{divert.WithQueueLength(16384), divert.WithQueueSize(32 << 20)}
	if o.forward {
		opts = append(opts, divert.WithLayer(divert.LayerForward))
	}
	if !o.inline {
		opts = append(opts, divert.WithFlags(divert.Sniff|divert.RecvOnly))
	}
	h, err := open(o.where, opts...)
	if err != nil {
		return err
	}
	defer h.Close()
	e := newEngine(rules, h, o.inline, eve)
	if !o.inline {
		e.out = nowhere{}
	}
	fmt.Fprintf(errout, "ids: begun with %d rules, %d left out\n", len(rules), left)
	for p, err := range h.Packets(ctx) {
		if errors.Is(err, context.Canceled) {
			break
		} else if err != nil {
			return err
		}
		if err := e.packet(p, p.Addr.Time()); err != nil {
			fmt.Fprintln(errout, "ids:", err)
		}
		if broken != nil {
			return broken
		}
	}
	e.summary(errout, len(rules), left)
	return nil
}

// nowhere is the carrier for copies.
type nowhere struct{}

// Accept does nothing.
func (nowhere) Accept(*divert.Packet) error { return nil }

// Drop does nothing.
func (nowhere) Drop(*divert.Packet) error { return nil }

// Send does nothing.
func (nowhere) Send(*divert.Packet) error { return nil }

// readCapture inspects the packets of a capture file.
func (e *engine) readCapture(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := pcapgo.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for {
		data, info, err := r.ReadPacketData()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if data, err = ipOf(data, r.LinkType()); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if data != nil {
			if err := e.packet(&divert.Packet{Data: data}, info.Timestamp); err != nil {
				return err
			}
		}
	}
}

// ipOf returns the IP packet in a frame, nil if there is none.
func ipOf(b []byte, link layers.LinkType) ([]byte, error) {
	const etherType, vlanTag = 12, 4
	switch link {
	case layers.LinkTypeRaw, layers.LinkTypeIPv4, layers.LinkTypeIPv6, 12: // 12 is raw IP too, in files from Linux
		return b, nil
	case layers.LinkTypeEthernet:
		for at := etherType; at+2 <= len(b); at += vlanTag {
			switch layers.EthernetType(uint16(b[at])<<8 | uint16(b[at+1])) {
			case layers.EthernetTypeDot1Q, layers.EthernetTypeQinQ:
			case layers.EthernetTypeIPv4, layers.EthernetTypeIPv6:
				return b[at+2:], nil
			default:
				return nil, nil
			}
		}
		return nil, nil
	}
	return nil, fmt.Errorf("the link type %v is not understood; Ethernet and raw IP are", link)
}

// summary prints the counters.
func (e *engine) summary(w io.Writer, rules, left int) {
	c := &e.counters
	fmt.Fprintf(w, "ids: %d rules, %d left out; %d packets, %d alerts", rules, left, c.packets, c.alerts)
	if c.dropped > 0 {
		fmt.Fprintf(w, ", %d dropped", c.dropped)
	}
	if c.differing > 0 {
		fmt.Fprintf(w, ", %d sent again with other bytes", c.differing)
	}
	if c.uninspected > 0 {
		fmt.Fprintf(w, ", %d fragments or cut packets not inspected", c.uninspected)
	}
	fmt.Fprintln(w)
}
