package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/packet"
	"github.com/spf13/cobra"
)

func newReject(a *app) *cobra.Command {
	var (
		flags   handleFlags
		verbose bool
		asJSON  bool
		file    traceFlag
	)
	cmd := &cobra.Command{
		Use:   "reject [flags] FILTER",
		Short: "Refuse the packets that match, with an answer to the sender",
		Long: `Take the packets that match a filter out of the network and answer them: TCP with a reset
(RST), UDP with the ICMP or ICMPv6 message that the port is unreachable. Programs then fail at once
with "connection refused" instead of waiting, on this host (packets on the way out) as on others
(packets on the way in, and with --layer forward those that are routed).

Everything else is dropped without an answer, as are packets that must not be answered: TCP with
RST or FIN, fragments other than the first, and what goes to many or comes from nowhere.
Mind the connection you work over: spare it with "and tcp.SrcPort != 22", for example.

With -v each packet prints a line, with --json too an object as those of divert dump. With -w the packets are written
to a capture file, and the answers too, on an interface whose name ends in ":sent". The run ends if that fails.

On Linux, answers to packets on the way out and to routed ones need /dev/net/tun.`,
		Example: `  divert reject tcp.DstPort == 25                       no mail from here, and no waiting
  divert reject 'inbound and tcp.DstPort in {3306, 5432}'   look closed from outside
  divert reject -v udp.DstPort == 443                   browsers fall back from QUIC to TCP
  divert reject --layer forward 'ip.DstAddr == 198.51.100.0/24'`,
		Args: filterArguments,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, p, err := flags.program(args)
			if err != nil {
				return err
			}
			if verbose && file.path == "-" {
				return usagef("-v prints to standard output, where -w - writes the file; choose one")
			}
			if p.Layer() == divert.LayerForward && runtime.GOOS != "linux" {
				return usagef("--layer forward rejects on Linux only: elsewhere packets sent at this layer cannot go back to the sender")
			}
			ctx, stop := flags.scope.until(cmd.Context())
			defer stop()
			r := report{app: a, json: asJSON, scope: &flags.scope}
			if err := flags.follow(ctx, p, &r); err != nil {
				return err
			}
			t, err := file.open(a, text, r.warn)
			if err != nil {
				return err
			}
			h, err := flags.openTraced(p, 0, t)
			if err != nil {
				return err
			}
			defer h.Close()
			j := newRejecter(h, r.warn)
			j.trace, j.metrics = t, flags.scope.metrics
			about := t.about()
			about.answers = j.counts
			j.metrics.tell(about)
			j.limit = flags.scope.count
			if verbose {
				j.log = newRejectLog(a, asJSON)
			}
			r.begin("reject", "rejecting", text, h)
			err = errors.Join(j.run(ctx), r.endTrace(t, h))
			r.answers = &j.count
			r.end(h)
			return err
		},
	}
	flags.add(cmd, packetLayers)
	flags.addQueue(cmd, usualQueueLength, usualQueueTime, usualQueueSize)
	flags.addHang(cmd)
	file.add(cmd, "the packets, and the answers,")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print a line for each packet")
	cmd.Flags().BoolVar(&asJSON, "json", false, "messages and summary on standard error as JSON; with -v, packets too")
	return cmd
}

// rejectBatch is how many packets are received and answered at a time.
const rejectBatch = 64

// answerCounts counts the outcomes of a run's packets. A reset or message that could not be sent counts as made here,
// and as failed in the handle's counters.
type answerCounts struct {
	Resets       uint64 `json:"resets"`
	Unreachables uint64 `json:"unreachables"`
	Unanswered   uint64 `json:"unanswered"`
}

// rejecter answers the packets of a handle.
type rejecter struct {
	h        *divert.Handle
	warnings warnings
	log      *rejectLog // nil: none
	trace    *trace
	outcomes [rejectBatch]capfile.Verdict

	mu        sync.Mutex
	published answerCounts // a copy for other goroutines
	count     answerCounts
	metrics   *metricsServer
	limit     int // packets to answer, 0: all

	subnets  broadcasts
	parsed   packet.Parsed
	received []divert.Packet
	answers  []divert.Packet // reused, with the memory of their Data
}

func newRejecter(h *divert.Handle, warn func(error)) *rejecter {
	return &rejecter{
		h: h, warnings: warnings{warn: warn},
		received: make([]divert.Packet, rejectBatch), answers: make([]divert.Packet, rejectBatch),
	}
}

// run answers packets until ctx ends and the queue is empty, or until the limit is reached.
func (j *rejecter) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = j.h.Shutdown(divert.ShutdownRecv) }) // fails only on a closed handle, which ends the run too
	defer stop()
	for seen := 0; j.limit == 0 || seen < j.limit; {
		ps := j.received
		if j.limit > 0 {
			ps = ps[:min(len(ps), j.limit-seen)]
		}
		n, err := j.h.RecvBatch(ps)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		seen += n
		j.metrics.observe(ps[:n])
		if err := j.subnets.update(); err != nil {
			j.warnings.add(err)
		}
		answers := j.answerAll(j.received[:n])
		j.publish()
		if _, err := j.h.SendBatch(answers); err != nil {
			j.warnings.add(err)
		}
		if err := errors.Join(j.record(j.received[:n], answers), j.log.write(j.received[:n])); err != nil {
			return err
		}
	}
	return nil
}

// publish copies the counters for counts.
func (j *rejecter) publish() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.published = j.count
}

// counts returns the counters; any goroutine may call it.
func (j *rejecter) counts() answerCounts {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.published
}

// record writes packets and their answers to the capture file.
func (j *rejecter) record(ps, answers []divert.Packet) error {
	err := j.trace.received(ps, 0, func(i int) capfile.Verdict { return j.outcomes[i] })
	return errors.Join(err, j.trace.sent(answers), j.trace.flush())
}

// answerAll makes the answers to packets. Received packets are not sent on, so they are dropped.
func (j *rejecter) answerAll(ps []divert.Packet) []divert.Packet {
	n := 0
	for i := range ps {
		if j.answer(&j.answers[n], &ps[i]) {
			n++
			j.outcomes[i] = capfile.Rejected
		} else {
			j.count.Unanswered++
			j.outcomes[i] = capfile.Dropped
		}
	}
	return j.answers[:n]
}

// answer makes the answer to a packet and reports whether it has one (specification: samples.md 2).
func (j *rejecter) answer(a, p *divert.Packet) (ok bool) {
	parsed := &j.parsed
	if !parsed.Parse(p.Data) || j.subnets.contains(p.Data, parsed) {
		return false
	}
	code := uint8(packet.ICMPPortUnreachable)
	if parsed.Family == 6 {
		code = packet.ICMPv6PortUnreachable
	}
	switch {
	case parsed.TCPOff >= 0:
		if a.Data, ok = packet.AppendReset(a.Data[:0], p.Data, parsed); ok {
			j.count.Resets++
		}
	case parsed.UDPOff >= 0:
		if a.Data, ok = packet.AppendUnreachable(a.Data[:0], p.Data, parsed, code); ok {
			j.count.Unreachables++
		}
	}
	a.Addr = p.Addr
	a.Addr.Outbound = !p.Addr.Outbound
	a.Addr.IPChecksum, a.Addr.TCPChecksum, a.Addr.UDPChecksum = true, true, true // they are already computed
	return ok
}

// rejectLog prints the rejected packets.
type rejectLog struct {
	w       *bufio.Writer
	printer printer
	json    bool
	clock   *wallClock
	names   interfaces
	record  record
	buf     []byte
}

func newRejectLog(a *app, asJSON bool) *rejectLog {
	return &rejectLog{
		w: bufio.NewWriterSize(a.out, bufferSize), printer: printer{colour: a.colour}, json: asJSON,
		clock: newWallClock(), names: interfaces{}, record: record{live: true},
	}
}

// write prints packets; nothing without a log.
func (l *rejectLog) write(ps []divert.Packet) (err error) {
	if l == nil {
		return nil
	}
	for i := range ps {
		if l.json {
			l.record.set(&ps[i], l.clock, l.names)
			if l.buf, err = l.printer.appendJSON(l.buf[:0], &l.record); err != nil {
				return err
			}
		} else {
			l.buf = l.printer.appendBlocked(l.buf[:0], ps[i].Data)
		}
		if _, err := l.w.Write(l.buf); err != nil {
			return err
		}
	}
	return l.w.Flush()
}

// blockedFlags are the control bits with their names, in the order of the line (specification: samples.md 2).
var blockedFlags = [...]struct {
	flag packet.TCPFlags
	name string
}{
	{packet.TCPFin, "[FIN]"}, {packet.TCPRst, "[RST]"}, {packet.TCPUrg, "[URG]"},
	{packet.TCPSyn, "[SYN]"}, {packet.TCPPsh, "[PSH]"}, {packet.TCPAck, "[ACK]"},
}

// appendBlocked appends the line of a rejected packet (specification: samples.md 2).
func (p *printer) appendBlocked(b, data []byte) []byte {
	b = p.bad(b, "BLOCK")
	if !p.parsed.Parse(data) {
		return append(b, '\n')
	}
	src, dst := addresses(data, &p.parsed)
	b = src.AppendTo(append(b, " ip.SrcAddr="...))
	b = dst.AppendTo(append(b, " ip.DstAddr="...))
	if h := p.parsed.ICMP(data); h != nil {
		b = appendNumber(append(b, " icmp.Type="...), h.Type())
		b = appendNumber(append(b, " icmp.Code="...), h.Code())
	}
	if h := p.parsed.ICMPv6(data); h != nil {
		b = appendNumber(append(b, " icmpv6.Type="...), h.Type())
		b = appendNumber(append(b, " icmpv6.Code="...), h.Code())
	}
	if h := p.parsed.TCP(data); h != nil {
		b = appendNumber(append(b, " tcp.SrcPort="...), h.SrcPort())
		b = appendNumber(append(b, " tcp.DstPort="...), h.DstPort())
		b = append(b, " tcp.Flags="...)
		for _, f := range blockedFlags {
			if h.Flags()&f.flag != 0 {
				b = append(b, f.name...)
			}
		}
	}
	if h := p.parsed.UDP(data); h != nil {
		b = appendNumber(append(b, " udp.SrcPort="...), h.SrcPort())
		b = appendNumber(append(b, " udp.DstPort="...), h.DstPort())
	}
	return append(b, '\n')
}
