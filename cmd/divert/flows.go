package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
	"github.com/spf13/cobra"
)

func newFlows(a *app) *cobra.Command {
	var (
		flags       handleFlags
		top, asJSON bool
		interval    time.Duration
	)
	cmd := &cobra.Command{
		Use:   "flows [flags] [FILTER]",
		Short: "Print flows that begin and end, with their process",
		Long: `Print the flows of the processes in this network as they begin (ESTABLISHED) and end (DELETED): the
connections of TCP, and of UDP, ICMP and other protocols what a socket and a peer exchange, until the
socket is closed or nothing was heard for a while (UDP: 2 minutes, ICMP: 30 seconds).

With --top it prints totals per process instead, every --interval, those with the most flows first.`,
		Example: `  divert flows
  divert flows tcp and not loopback
  divert flows --top remotePort == 443
  divert flows --json event == ESTABLISHED | jq -r .remote`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval <= 0 {
				return usagef("--interval %v is not positive", interval)
			}
			if top && flags.scope.count > 0 {
				return usagef("--top and --limit cannot be combined: totals have no number of events")
			}
			text, p, err := flags.program(args)
			if err != nil {
				return err
			}
			ctx, stop := flags.scope.until(cmd.Context())
			defer stop()
			r := report{app: a, json: asJSON, scope: &flags.scope}
			if err := flags.follow(ctx, p, &r); err != nil {
				return err
			}
			h, err := flags.open(p, divert.RecvOnly|divert.Sniff)
			if err != nil {
				return err
			}
			defer h.Close()
			r.begin("flows", "watching flows", text, h)
			printer := newEventPrinter(a, asJSON)
			if top {
				t := &topFlows{printer: printer, metrics: flags.scope.metrics, interval: interval, next: time.Now().Add(interval), byProcess: map[uint32]*flowTotals{}}
				err = t.run(ctx, h)
			} else {
				err = eachEvent(ctx, h, &flags.scope, printer.print, printer.flush)
			}
			r.end(h)
			return err
		},
	}
	flags.addEvents(cmd, divert.LayerFlow)
	flags.scope.addEnd(cmd, "events")
	fl := cmd.Flags()
	fl.BoolVar(&top, "top", false, "totals per process, repeatedly")
	fl.DurationVar(&interval, "interval", time.Second, "with --top: how often")
	fl.BoolVar(&asJSON, "json", false, "one JSON object per event, or per process; messages as JSON too")
	return cmd
}

// flow prints an event of a flow, in the columns of the specification's sample (samples.md 6).
func (p *eventPrinter) flow(e *divert.Packet) error {
	if p.json || p.quiet || p.verbose {
		return p.socket(e)
	}
	a, d := &e.Addr, e.Addr.Flow()
	b := p.time(p.buf[:0], a.Timestamp)
	b = p.coloured(b, eventStyles[a.Event], fmt.Sprintf("%-11v", a.Event))
	b = fmt.Appendf(b, " %-10d %-20.20s %-6s ", d.ProcessID, printable(p.processes.program(d.ProcessID, a.ProcessName())), appendProtocol(nil, d.Protocol))
	return p.write(append(appendFlow(b, a, &d), '\n'))
}

// appendFlow appends both sides of a flow with an arrow in the direction in which it began.
func appendFlow(b []byte, a *divert.Address, d *packet.FlowData) []byte {
	b = strconv.AppendUint(append(d.LocalAddr.AppendTo(b), ':'), uint64(d.LocalPort), 10)
	arrow := " <---- "
	if a.Outbound {
		arrow = " ----> "
	}
	b = append(b, arrow...)
	return strconv.AppendUint(append(d.RemoteAddr.AppendTo(b), ':'), uint64(d.RemotePort), 10)
}

// flowTotals counts the flows of a process.
type flowTotals struct {
	PID     uint32 `json:"pid"`
	Program string `json:"program,omitempty"` // path
	Name    string `json:"name,omitempty"`    // of the process
	Open    int    `json:"open"`              // begun and not ended
	Total   uint64 `json:"total"`             // begun since the run began
	In      uint64 `json:"in"`                // the part of total begun by the other side
	TCP     uint64 `json:"tcp"`
	UDP     uint64 `json:"udp"`
	Other   uint64 `json:"other"`
}

// topFlows counts flows per process.
type topFlows struct {
	printer   *eventPrinter
	metrics   *metricsServer
	interval  time.Duration
	next      time.Time
	byProcess map[uint32]*flowTotals
}

// count counts an event.
func (t *topFlows) count(e *divert.Packet) {
	d := e.Addr.Flow()
	p := t.byProcess[d.ProcessID]
	if p == nil {
		p = &flowTotals{PID: d.ProcessID}
		t.byProcess[d.ProcessID] = p
	}
	if path := t.printer.processes.path(d.ProcessID); path != "" {
		p.Program = path // the last known path: by a flow's end the process may have ended too
	}
	if name := e.Addr.ProcessName(); name != "" {
		p.Name = name
	}
	if e.Addr.Event == packet.EventFlowDeleted {
		p.Open = max(0, p.Open-1)
		return
	}
	p.Open++
	p.Total++
	if !e.Addr.Outbound {
		p.In++
	}
	switch d.Protocol {
	case 6:
		p.TCP++
	case 17:
		p.UDP++
	default:
		p.Other++
	}
}

// table prints the totals, most flows first.
func (t *topFlows) table() error {
	list := slices.SortedFunc(maps.Values(t.byProcess), func(a, b *flowTotals) int {
		return cmp.Or(cmp.Compare(b.Open, a.Open), cmp.Compare(b.Total, a.Total), cmp.Compare(a.PID, b.PID))
	})
	if t.printer.json {
		for _, p := range list {
			if err := t.printer.line(p); err != nil {
				return err
			}
		}
		return t.printer.flush()
	}
	var text strings.Builder
	if t.printer.colour {
		text.WriteString(emptyScreen)
	}
	columns := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(columns, "PID\tPROGRAM\tOPEN\tTOTAL\tIN\tTCP\tUDP\tOTHER")
	for _, p := range list {
		name := cmp.Or(p.Name, "???")
		if p.Program != "" {
			name = p.Program[strings.LastIndexAny(p.Program, `/\`)+1:]
		}
		fmt.Fprintf(columns, "%d\t%s\t%d\t%d\t%d\t%d\t%d\t%d\n", p.PID, printable(name), p.Open, p.Total, p.In, p.TCP, p.UDP, p.Other)
	}
	if err := columns.Flush(); err != nil {
		return err
	}
	if !t.printer.colour {
		text.WriteByte('\n')
	}
	if _, err := io.WriteString(t.printer.w, text.String()); err != nil {
		return err
	}
	return t.printer.flush()
}

// run prints the totals at every interval until ctx ends, and once more at the end.
func (t *topFlows) run(ctx context.Context, h *divert.Handle) error {
	stop := context.AfterFunc(ctx, func() { _ = h.Shutdown(divert.ShutdownRecv) }) // fails only on a closed handle, which ends the run too
	defer stop()
	ps := make([]divert.Packet, dumpBatch)
	for {
		if err := h.SetReadDeadline(t.next); err != nil {
			return err
		}
		n, err := h.RecvBatch(ps)
		t.metrics.observe(ps[:n])
		for i := range ps[:n] {
			t.count(&ps[i])
		}
		switch {
		case err == io.EOF:
			return t.table()
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		}
		if now := time.Now(); !now.Before(t.next) {
			t.next = now.Add(t.interval)
			if err := t.table(); err != nil {
				return err
			}
		}
	}
}
