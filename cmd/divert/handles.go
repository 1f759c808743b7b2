package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/wincode"
	"github.com/opendivert/divert/packet"
	"github.com/spf13/cobra"
)

// handlePriority is the priority of the handles that list others (specification: samples.md 8).
const handlePriority = -333

// codeNoService is the Windows error number that NoInstall returns without a running driver,
// ERROR_SERVICE_DOES_NOT_EXIST (specification: api.md 20).
const codeNoService = 1060

// reflector is a run that lists the handles of all processes.
type reflector struct {
	app     *app
	flags   handleFlags
	json    bool
	printer *eventPrinter
}

func newReflector(a *app, cmd *cobra.Command) *reflector {
	r := &reflector{app: a}
	r.flags.addEvents(cmd, divert.LayerReflect)
	r.flags.priority = handlePriority
	_ = cmd.Flags().MarkHidden("priority") // there is nothing to come before or after
	cmd.Flags().BoolVar(&r.json, "json", false, "one JSON object per handle; messages as JSON too")
	return r
}

// open opens the handle, with additional flags.
func (r *reflector) open(args []string, more divert.Flag) (*divert.Handle, error) {
	r.printer = newEventPrinter(r.app, r.json)
	p, err := r.flags.compile(args)
	if err != nil {
		return nil, err
	}
	if err := r.flags.sets.load(p); err != nil {
		return nil, err
	}
	return r.flags.open(p, divert.RecvOnly|divert.Sniff|more)
}

// each passes the handles that are open now to f.
func (r *reflector) each(ctx context.Context, args []string, f func(*divert.Packet) error) error {
	h, err := r.open(args, divert.NoInstall)
	if wincode.Of(err) == codeNoService {
		return nil // without a driver there are no handles
	}
	if err != nil {
		return err
	}
	defer h.Close()
	return eachOpen(ctx, h, f, r.printer.flush)
}

// eachOpen passes the handles that are open now to f, then calls idle. h is at the layer REFLECT.
func eachOpen(ctx context.Context, h *divert.Handle, f func(*divert.Packet) error, idle func() error) error {
	if err := h.Shutdown(divert.ShutdownBoth); err != nil {
		return err
	}
	return eachEvent(ctx, h, &scope{}, func(e *divert.Packet) error {
		if e.Addr.Event != packet.EventReflectOpen {
			return nil
		}
		return f(e)
	}, idle)
}

// jsonHandle is a handle as JSON.
type jsonHandle struct {
	Time      time.Time `json:"time"` // of the event: RFC 3339, UTC, nanoseconds
	Timestamp int64     `json:"timestamp"`
	Event     string    `json:"event"` // OPEN, CLOSE, KILL
	Opened    time.Time `json:"opened"`
	PID       uint32    `json:"pid"` // 0: unknown
	Program   string    `json:"program,omitempty"`
	Layer     string    `json:"layer"` // of the handle
	Flags     []string  `json:"flags"`
	Priority  int16     `json:"priority"`
	Filter    string    `json:"filter"`
}

// reflect prints an event of REFLECT.
func (p *eventPrinter) reflect(e *divert.Packet) error {
	return p.handle(e.Addr.Event.String(), eventStyles[e.Addr.Event], e)
}

// handle prints an event of a handle (specification: samples.md 8).
func (p *eventPrinter) handle(word string, s style, e *divert.Packet) error {
	d := e.Addr.Reflect()
	path := p.processes.path(d.ProcessID)
	flags := divert.Flag(d.Flags)
	text := filterOf(e.Data, d.Layer)
	if p.json {
		j := jsonHandle{
			Time: p.clock.time(e.Addr.Timestamp).UTC(), Timestamp: e.Addr.Timestamp, Event: word, Opened: p.clock.time(d.Timestamp).UTC(), PID: d.ProcessID, Program: path,
			Layer: d.Layer.String(), Flags: []string{}, Priority: d.Priority, Filter: text,
		}
		if flags != 0 {
			j.Flags = strings.Split(flags.String(), "|")
		}
		return p.line(j)
	}
	if path == "" {
		path = "???"
	}
	pid := strconv.FormatUint(uint64(d.ProcessID), 10)
	if d.ProcessID == 0 {
		pid = "?" // unknownProcess
	}
	b := p.buf[:0]
	if p.verbose {
		b = p.time(b, e.Addr.Timestamp)
	}
	b = p.coloured(b, s, word)
	if p.quiet {
		return p.write(fmt.Appendf(b, " pid=%s layer=%v priority=%d filter=%q\n", pid, d.Layer, d.Priority, text))
	}
	b = append(b, " opened "...)
	b = append(b, ageText(p.clock.time(clock.Now()).Sub(p.clock.time(d.Timestamp)))...)
	b = fmt.Appendf(b, " pid=%s exe=%s layer=%v flags=%v priority=%d filter=%q\n", pid, printable(path), d.Layer, flags, d.Priority, text)
	if p.verbose {
		b = p.coloured(append(b, '\t'), styleProto, "handle")
		b = fmt.Appendf(b, " event=%v processId=%d layer=%v priority=%d timestamp=%d\n", e.Addr.Event, d.ProcessID, d.Layer, d.Priority, e.Addr.Timestamp)
	}
	return p.write(b)
}

// ageText returns a duration in its two greatest units.
func ageText(age time.Duration) string {
	if age < time.Second {
		return "now"
	}
	seconds := int64(age / time.Second)
	for i, u := range ages {
		n, rest := seconds/u.seconds, seconds%u.seconds
		if n == 0 {
			continue
		}
		text := fmt.Sprintf("%d%s", n, u.name)
		if i+1 < len(ages) && rest/ages[i+1].seconds > 0 {
			text += fmt.Sprintf(" %d%s", rest/ages[i+1].seconds, ages[i+1].name)
		}
		return text + " ago"
	}
	return "now"
}

var ages = []struct {
	name    string
	seconds int64
}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}}

// filterOf returns the filter of a handle as text: a valid object in normal form, anything else unchanged.
func filterOf(data []byte, layer divert.Layer) string {
	object := strings.TrimSuffix(string(data), "\x00")
	if !strings.HasPrefix(object, "@") {
		return object
	}
	p, err := filter.Compile(object, layer, filter.Extended)
	if err != nil {
		return object
	}
	text, err := p.Format()
	if err != nil {
		return object
	}
	return text
}

func newList(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [flags] [FILTER]",
		Short: "List the open handles: their processes and filters",
		Long: `List the open handles of all processes in this network, the oldest first. The filter is one of
the layer reflect: it chooses by processId, layer and priority. The process id is the one that the kernel
confirms; where it does not, since the process is of another pid namespace or another user's, it reads "?".`,
		Example: "  divert list\n  divert list layer == NETWORK and priority > 0\n  divert list --json | jq .filter",
	}
	r := newReflector(a, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return r.each(cmd.Context(), args, func(e *divert.Packet) error { return r.printer.print(e) })
	}
	return cmd
}

func newWatch(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "watch [flags] [FILTER]",
		Short: "Print handles as they are opened and closed",
		Long: `Print the open handles of all processes in this network, and then each that is opened or closed,
also by the end of its process. The filter is one of the layer reflect.`,
		Example: "  divert watch\n  divert watch event == CLOSE\n  divert watch --json layer == SOCKET",
	}
	r := newReflector(a, cmd)
	r.flags.scope.addEnd(cmd, "events")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := r.flags.scope.check(); err != nil {
			return err
		}
		ctx, stop := r.flags.scope.until(cmd.Context())
		defer stop()
		h, err := r.open(args, 0)
		if err != nil {
			return err
		}
		defer h.Close()
		run := report{app: a, json: r.json, scope: &r.flags.scope}
		run.begin("watch", "watching handles", filterText(args), h)
		err = eachEvent(ctx, h, &r.flags.scope, r.printer.print, r.printer.flush)
		run.end(h)
		return err
	}
	return cmd
}

func newKill(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kill [flags] PID|all",
		Short: "End the processes with open handles",
		Long: `End a process that has handles open in this network, or all of them, at once and for good; the
traffic that they held flows again. A process without a handle is left alone, and so is one of which the kernel
does not confirm that it has one.`,
		Example: "  divert kill 4711\n  divert kill all",
	}
	r := newReflector(a, cmd)
	cmd.ValidArgsFunction = r.completeHandles
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		only, err := whom(args)
		if err != nil {
			return err
		}
		var failed []error
		asked := map[uint32]bool{}
		unknown := 0
		err = r.each(cmd.Context(), nil, func(e *divert.Packet) error {
			pid := e.Addr.Reflect().ProcessID
			if pid == 0 {
				unknown++
			}
			if pid == 0 || asked[pid] || only != 0 && pid != only {
				return nil
			}
			asked[pid] = true
			r.printer.processes.path(pid) // while the process exists
			if err := killProcess(pid); err != nil {
				failed = append(failed, fmt.Errorf("process %d was left alone: %w", pid, err))
				return nil
			}
			return r.printer.handle("KILL", styleBad, e)
		})
		switch {
		case err != nil:
		case unknown > 0 && (only == 0 || !asked[only]):
			err = fmt.Errorf("%d of the open handles were left alone, because their process is unknown (%s)", unknown, unknownProcess)
		case only != 0 && !asked[only]:
			err = fmt.Errorf("process %d has no handle open here", only)
		}
		return errors.Join(append(failed, err)...)
	}
	return cmd
}

// unknownProcess explains why the process of a handle is unknown.
const unknownProcess = "it is in another pid namespace, or only root may see it"

// whom returns the process that an argument names, 0 for all.
func whom(args []string) (uint32, error) {
	if len(args) != 1 {
		return 0, usagef("kill needs a process id, or all")
	}
	if args[0] == "all" {
		return 0, nil
	}
	pid, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil || pid == 0 || pid > math.MaxInt32 {
		return 0, usagef("%q is not a process id", args[0])
	}
	return uint32(pid), nil
}
