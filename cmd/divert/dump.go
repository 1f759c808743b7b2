package main

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
	"github.com/spf13/cobra"
)

// dump is one run of `divert dump`.
type dump struct {
	app     *app
	flags   handleFlags
	letters letters
	printer printer
	json    bool
	snap    int    // most bytes of each packet to receive, 0: all
	read    string // capture file to read, "-": standard input
	write   string // capture file to write, "-": standard output

	program *filter.Program
	text    string
	shown   int
	sink    sink
	silent  bool // print nothing about the run
	first   firstFlag
}

func newDump(a *app) *cobra.Command {
	d := &dump{app: a}
	cmd := &cobra.Command{
		Use:   "dump [flags] [FILTER]",
		Short: "Print the packets or events that match, or write packets to a capture file",
		Long: `Print copies of the packets that match a filter (all, if there is none); the packets
themselves go on undelayed. At the layers flow, socket and reflect it prints events, as divert flows,
divert sockets and divert watch do.

A line has the time, the interface, the direction, and then what tcpdump would print:
  <-  comes in     ->  goes out     <>  from this host to itself     >>  is routed through
and last, where it can be known, the program that sends or receives the packet and its process id. It is
known at layer network if the kernel decides; what the kernel sends by itself has none.

With -r the filter is applied to a capture file instead, which needs no privileges: pcap of versions 2.0 to
2.4 or pcapng, compressed with gzip or not. Packets of a file count as inbound unless the file says that they
went out, and their interface index is 0. Of a file that is cut off, the whole packets are printed first.

With --json each line is an object. Keys: time, timestamp, layer, direction (in, out, loopback,
forward), ifindex, ifname, pid, program (its path), verdict, impostor, length, captured, version, src, dst, ttl, protocol,
protocol_name, sport, dport, payload_length, fragment {id, offset, more}, tcp {flags, seq, ack, window},
icmp {type, code, body}, and with -x data. Keys that make no sense for a packet are absent.
Events of flow and socket have time, timestamp, layer, event, pid, program, endpoint, parent, protocol,
protocol_name, direction, loopback, ipv6, local, lport, remote, rport; those of reflect time, timestamp,
event, and of the handle opened, pid, program, layer, flags, priority and filter.`,
		Example: `  divert dump                                          everything
  divert dump -c 10 tcp.DstPort == 443 and tcp.Syn     ten connections that begin
  divert dump -X 'udp.DstPort == 53 or udp.SrcPort == 53'
  divert dump -i eth0 -nn -tttt tcp                    tcpdump's letters; docs/tcpdump.md has all
  divert dump -w day-%H.pcapng -G 3600 -W 24           a file for each hour of a day
  divert dump -v icmp or icmpv6                        every header field
  divert dump --first 3 tcp                            how each connection begins
  divert dump processId == 4711                        what a process sends and receives
  divert dump -w web.pcapng 'tcp.DstPort in {80, 443}' for Wireshark
  divert dump -s 96 -w headers.pcapng tcp              the headers only
  divert dump -r web.pcapng 'tcp.PayloadLength > 0'    from a file
  divert dump -w - tcp | wireshark -k -i -             live in Wireshark
  divert dump --json udp | jq -r .src                  for programs
  divert dump --layer socket event == CONNECT          what connects, with its process
  divert dump --layer flow -q tcp                      connections, in short lines
  divert dump --layer reflect                          who diverts`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := d.check(cmd); err != nil {
				return err
			}
			return d.run(cmd.Context(), args)
		},
	}
	d.flags.add(cmd, allLayers)
	d.flags.addQueue(cmd, maxQueueLength, maxQueueTime, maxQueueSize)
	fl := cmd.Flags()
	fl.IntVarP(&d.snap, "snapshot-length", "s", 0, "receive only so many `bytes` of each packet, 64 or more; 0: all")
	fl.BoolVarP(&d.printer.quiet, "quiet", "q", false, "short lines: only protocol and payload length of packets")
	fl.CountVarP(&d.printer.verbose, "verbose", "v", "also all fields, with their names in filters, and the date")
	fl.BoolVar(&d.json, "json", false, "one JSON object per packet or event; messages as JSON too")
	fl.StringVarP(&d.write, "write", "w", "", "write a pcapng `file` instead of printing; - is standard output")
	fl.StringVarP(&d.read, "read", "r", "", "read a pcap or pcapng `file` instead of the network; - is standard input")
	d.first.add(cmd)
	d.letters.add(cmd)
	return cmd
}

// check refuses flags that make no sense, alone or together.
func (d *dump) check(cmd *cobra.Command) error {
	if err := d.flags.scope.check(); err != nil {
		return err
	}
	if d.snap != 0 && d.snap < divert.MinSnapLength {
		return usagef("--snapshot-length %d is less than the longest headers take; it must be 0 or at least %d", d.snap, divert.MinSnapLength)
	}
	changed := func(name string) bool { return cmd.Flags().Changed(name) }
	exclude := func(flag string, others ...string) error {
		if i := slices.IndexFunc(others, changed); changed(flag) && i >= 0 {
			return usagef("--%s and --%s cannot be combined", flag, others[i])
		}
		return nil
	}
	for _, err := range []error{
		exclude("write", "quiet", "verbose", "hex", "hex-ascii", "ascii", "time", "number", "link"),
		exclude("json", "quiet", "verbose", "time", "number", "link", "count", "compile", "list-interfaces", "list-data-link-types"),
		exclude("quiet", "verbose"),
		exclude("read", "interface", "process", "for", "metrics", "priority", "fragments", "engine", "driver", "queue-length", "queue-time", "queue-size"),
	} {
		if err != nil {
			return err
		}
	}
	if d.snap > 0 && d.read != "" {
		return usagef("--read and --snapshot-length cannot be combined: packets of a file have the length they were captured with")
	}
	if layer := d.flags.layer(); hasEvents(layer) {
		for _, name := range []string{"write", "read", "hex", "hex-ascii", "ascii", "time", "number", "link", "interface", "direction", "snapshot-length"} {
			if changed(name) {
				return usagef("--%s applies to packets, but the layer %s has events", name, word(layer))
			}
		}
	}
	if d.write == "-" && d.app.colour {
		return errTerminal
	}
	return d.letters.check(d)
}

func (d *dump) run(ctx context.Context, args []string) (err error) {
	if err := d.compile(args); err != nil {
		return err
	}
	if done, err := d.letters.instead(d); done || err != nil {
		return err
	}
	ctx, stop := d.flags.scope.until(ctx)
	defer stop()
	l := &d.letters
	d.printer.colour, d.printer.bytes, d.printer.times, d.printer.nano = d.app.colour, l.bytes(), l.times, l.nano
	d.printer.number, d.printer.link, d.printer.noSums = l.number, l.link, l.noSums
	if d.read != "" {
		return d.file(ctx)
	}
	return d.live(ctx)
}

// compile compiles the filter, first exactly as given: errors show that text.
func (d *dump) compile(args []string) (err error) {
	if d.text, err = d.letters.filter(args); err != nil {
		return err
	}
	if d.program, err = d.flags.compileText(d.text); err != nil {
		return err
	}
	for _, narrow := range []func() (string, error){
		func() (string, error) {
			text, _, err := d.flags.narrowed(d.text, d.program)
			return text, err
		},
		func() (string, error) { return d.letters.narrow(d.text, d.program) },
		func() (string, error) { return d.first.narrow(d.text, d.program, &d.flags.dialectFlags) },
	} {
		text, err := narrow()
		if err != nil {
			return err
		}
		if text == d.text {
			continue
		}
		d.text = text
		if d.program, err = d.flags.compileText(text); err != nil {
			return err
		}
	}
	return nil
}

// live prints the packets or events that a handle receives.
func (d *dump) live(ctx context.Context) error {
	r := report{app: d.app, json: d.json, scope: &d.flags.scope}
	if err := d.flags.follow(ctx, d.program, &r); err != nil {
		return err
	}
	h, err := d.open()
	if err != nil {
		return err
	}
	defer h.Close()
	if hasEvents(h.Layer()) {
		r.begin("dump", "watching", d.text, h)
		err = d.events(ctx, h)
		r.end(h)
		return err
	}
	if err := d.openSink(); err != nil {
		return err
	}
	d.sink.statisticsOf(h)
	if !d.silent {
		r.begin("dump", "watching", d.text, h)
		defer r.end(h)
	}
	err = d.receive(ctx, h)
	if closed := d.sink.close(); err == nil {
		err = closed
	}
	return err
}

// events prints the events that a handle receives.
func (d *dump) events(ctx context.Context, h *divert.Handle) error {
	p := newEventPrinter(d.app, d.json)
	p.quiet, p.verbose = d.printer.quiet, d.printer.verbose > 0
	return eachEvent(ctx, h, &d.flags.scope, p.print, p.flush)
}

// open opens a handle that reports the processes of packets if possible; if the filter tests them, it must.
func (d *dump) open() (h *divert.Handle, err error) {
	var opts []divert.Option
	if d.snap > 0 {
		opts = append(opts, divert.WithSnapLength(d.snap))
	}
	h, d.printer.processes, err = d.flags.openWithProcesses(d.program, divert.Sniff|divert.RecvOnly, opts...)
	return h, err
}

// openWithProcesses opens a handle that reports the processes of packets if possible; if the filter tests them, it
// must. Where it cannot, the returned processes are nil.
func (f *handleFlags) openWithProcesses(p *filter.Program, flags divert.Flag, opts ...divert.Option) (*divert.Handle, *processes, error) {
	if p.Layer() == divert.LayerNetwork {
		h, err := f.open(p, flags, append(slices.Clip(opts), divert.WithProcessID())...)
		switch {
		case err == nil:
			return h, newProcesses(), nil
		case !errors.Is(err, divert.ErrNoProcess) || testsProcess(p):
			return nil, nil, err
		}
	}
	h, err := f.open(p, flags, opts...)
	return h, nil, err
}

// testsProcess reports whether a filter of packets tests their process.
func testsProcess(p *filter.Program) bool {
	return (*prog.Program)(p).Asks(prog.Field.OfProcess)
}

// dumpBatch is how many packets are received at a time.
const dumpBatch = 64

// receive passes the packets of a handle to the sink until ctx ends and the queue is empty.
func (d *dump) receive(ctx context.Context, h *divert.Handle) error {
	stop := context.AfterFunc(ctx, func() { _ = h.Shutdown(divert.ShutdownRecv) }) // fails only on a closed handle, which ends the run too
	defer stop()
	ps := make([]divert.Packet, dumpBatch)
	names := interfaces{}
	clock := newWallClock()
	r := &record{live: true}
	var lost losses
	if d.write != "" {
		lost.handle = h
	}
	for {
		if d.flags.scope.count > 0 {
			ps = ps[:min(len(ps), d.flags.scope.count-d.shown)]
		}
		n, err := h.RecvBatch(ps)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		d.flags.scope.metrics.observe(ps[:n])
		gone := lost.next()
		for i := range ps[:n] {
			r.set(&ps[i], clock, names)
			r.lost, gone = gone, 0
			r.ascribe(d.printer.processes)
			if done, err := d.show(r); done || err != nil {
				return err
			}
		}
		if err := d.sink.flush(); err != nil {
			return err
		}
	}
}

// set makes a record of a received packet.
func (r *record) set(p *divert.Packet, clock *wallClock, names interfaces) {
	r.data, r.length, r.addr = p.Data, len(p.Data), &p.Addr
	if whole := (packet.Parsed{}); whole.Parse(p.Data) {
		r.length = max(r.length, int(whole.Length)) // data may be shorter, with --snapshot-length
	}
	r.length = max(r.length, p.Addr.PacketLength()) // the header of a BIG TCP packet has no length
	r.when = clock.time(p.Addr.Timestamp)
	r.device = names.name(p.Addr.Network().IfIdx)
	r.direction = directionOf(&p.Addr)
}

// show passes a packet to the sink and reports whether it was the last one.
func (d *dump) show(r *record) (done bool, err error) {
	err = d.sink.write(r)
	if errors.Is(err, errLastFile) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if d.letters.each {
		if err := d.sink.flush(); err != nil {
			return false, err
		}
	}
	d.shown++
	return d.shown == d.flags.scope.count, nil
}

// file prints the matching packets of a capture file.
func (d *dump) file(ctx context.Context) error {
	in := d.app.in
	if d.read != "-" {
		f, err := os.Open(d.read)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	c, err := newCaptureReader(&interruptible{ctx: ctx, r: in}, d.program.Layer())
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.openSink(); err != nil {
		return err
	}
	err = d.filterFile(ctx, c)
	if closed := d.sink.close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	r := report{app: d.app, json: d.json}
	for _, text := range c.Complaints() {
		r.warn(errors.New(text))
	}
	return err
}

func (d *dump) filterFile(ctx context.Context, c *captureReader) error {
	if err := d.flags.sets.load(d.program); err != nil {
		return err
	}
	var r record
	m, err := newFileMatcher(d.program)
	if err != nil {
		return err
	}
	for {
		if c.Drained() { // flush so that a live reader is not delayed
			if err := d.sink.flush(); err != nil {
				return err
			}
		}
		err := c.next(&r)
		if ctx.Err() != nil {
			return nil
		}
		if err == io.EOF && !m.told && testsProcess(d.program) {
			return usagef("the filter tests the processes of packets, which this capture file does not record; files of `divert dump -w` do")
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !m.matches(&r) {
			continue
		}
		if done, err := d.show(&r); done || err != nil {
			return err
		}
	}
}
