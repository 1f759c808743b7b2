package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
)

// top is one run of `divert top`.
type top struct {
	app      *app
	flags    handleFlags
	by       choice
	order    choice
	reverse  bool
	rows     int
	interval time.Duration
	json     bool
	plain    bool

	text    string
	report  report
	h       *divert.Handle
	counter *counter
	before  atomic.Uint64 // packets lost before the last restart of the counters
}

func newTop(a *app) *cobra.Command {
	t := &top{app: a}
	cmd := &cobra.Command{
		Use:   "top [flags] [FILTER]",
		Short: "Show the current use of the network: by process, flow and host",
		Long: `Show who uses the network now, and how much: the packets that match a filter (all, if there is none), by
process, by flow and by host, with bytes per second in and out, and sums. The packets themselves go on undelayed; only their
headers are read.

On a terminal the list is alive: sort it, type another filter, drop the packets of a row or reset its connections; ? shows the
keys. What was dropped flows again when the command ends. Elsewhere, or with --plain, it prints a table every --interval, with
--json an object.

Bytes are those of IP packets, without the link layer's headers. Every byte counts, also of the kernel's own packets, whose
process is 0. A packet of this host to itself counts as sent and as received, as the counters of its interface have it, and
among the flows once. Packets that came too fast to be counted are told as lost.`,
		Example: `  divert top
  divert top --by flow tcp
  divert top --plain --for 10s --by host 'udp'
  divert top --json --interval 5s | jq '.processes[0].name'
  divert top -i eth0 not loopback`,
		RunE: func(cmd *cobra.Command, args []string) error { return t.run(cmd.Context(), args) },
	}
	t.flags.add(cmd, packetLayers)
	t.flags.addQueue(cmd, maxQueueLength, maxQueueTime, maxQueueSize)
	f := cmd.Flags().Lookup("limit")
	f.Usage = "end after so many intervals"
	t.by.names, t.order.names = topByNames, topSortNames
	addChoice(cmd, &t.by, "by", "kind of rows")
	addChoice(cmd, &t.order, "sort", "column to sort rows by")
	fl := cmd.Flags()
	fl.BoolVar(&t.reverse, "reverse", false, "sort in ascending order")
	fl.IntVarP(&t.rows, "rows", "n", 20, "rows of tables, and of each list with --json; 0: all")
	fl.DurationVar(&t.interval, "interval", time.Second, "how often the numbers change, 100ms or more")
	fl.BoolVar(&t.plain, "plain", false, "tables, on a terminal too")
	fl.BoolVar(&t.json, "json", false, "one JSON object per interval; messages as JSON too")
	return cmd
}

// topSnap is how many bytes of each packet are received: the headers.
const topSnap = 128

func (t *top) run(ctx context.Context, args []string) (err error) {
	switch {
	case t.interval < 100*time.Millisecond:
		return usagef("--interval %v is less than 100ms", t.interval)
	case t.rows < 0:
		return usagef("--rows %d is negative", t.rows)
	case t.json && t.plain:
		return usagef("--json and --plain cannot be combined")
	}
	var p *filter.Program
	if t.text, p, err = t.flags.program(args); err != nil {
		return err
	}
	ctx, stop := t.flags.scope.until(ctx)
	defer stop()
	alive := t.app.terminal && !t.json && !t.plain
	r := report{app: t.app, json: t.json, scope: &t.flags.scope}
	says := make(chan string, 16) // messages of the run, for the screen
	if alive {
		quiet := *t.app
		quiet.errout = statusWriter{says}
		r.app = &quiet
	}
	t.report = r
	following, unfollow := context.WithCancel(ctx)
	defer unfollow()
	if err := t.flags.follow(following, p, &r); err != nil {
		return err
	}
	var processes *processes
	if t.h, processes, err = t.flags.openWithProcesses(p, divert.Sniff|divert.RecvOnly, divert.WithSnapLength(topSnap)); err != nil {
		return err
	}
	defer t.h.Close()
	t.counter = newCounter(processes, time.Now())
	if alive {
		t.flags.scope.metrics.start("top", t.text, t.h)
		defer t.flags.scope.metrics.stop()
		return t.interactive(ctx, says, unfollow)
	}
	r.begin("top", "counting packets", t.text, t.h)
	err = t.print(ctx)
	r.end(t.h)
	return err
}

// receive counts packets until the handle's receive half ends.
func (t *top) receive() error {
	ps := make([]divert.Packet, divert.MaxBatch)
	for {
		n, err := t.h.RecvBatch(ps)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		t.flags.scope.metrics.observe(ps[:n])
		t.counter.count(ps[:n], time.Now())
		if n < len(ps) {
			time.Sleep(topNap)
		}
	}
}

// topNap is how long the program waits when the queue is empty, so that packets gather and single packets do not wake
// it. At a million packets per second they fill a third of the queue.
const topNap = 5 * time.Millisecond

// lost returns how many packets were not counted.
func (t *top) lost() uint64 {
	s, err := t.h.Stats()
	if err != nil {
		return 0 // the handle is closed: the run is over
	}
	return s.DroppedFull + s.DroppedOld + s.DroppedLong + s.Lost - t.before.Load()
}

// print prints a table or an object at every interval until ctx ends, and once more for the packets since the last one.
func (t *top) print(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- t.receive() }()
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	w := bufio.NewWriter(t.app.out)
	begun := time.Now()
	for n := 1; ; n++ {
		last := false
		select {
		case err := <-ended:
			if err != nil {
				return err
			}
			last = true
		case <-ctx.Done():
			if err := errors.Join(t.h.Shutdown(divert.ShutdownRecv), <-ended); err != nil {
				return err
			}
			last = true
		case <-tick.C:
		}
		now := time.Now()
		t.counter.tick(now)
		if err := t.show(w, now, now.Sub(begun).Seconds()); err != nil {
			return err
		}
		begun = now
		if last || n == t.flags.scope.count {
			return nil
		}
	}
}

// show prints an interval.
func (t *top) show(w *bufio.Writer, now time.Time, seconds float64) error {
	if t.json {
		b, err := appendJSONLine(nil, t.counter.newJSONTop(now, seconds, t.lost(), topSort(t.order.value), t.reverse, t.rows))
		if err != nil {
			return err
		}
		_, _ = w.Write(b) // Flush returns the error
		return w.Flush()
	}
	v := t.view()
	t.counter.view(v)
	if t.rows > 0 {
		v.rows = v.rows[:min(len(v.rows), t.rows)]
	}
	v.lost, v.selected = t.lost(), -1
	for _, l := range v.lines(plainWidth, 0) {
		_, _ = w.WriteString(trimRight(l.text) + "\n")
	}
	_ = w.WriteByte('\n')
	return w.Flush()
}

// plainWidth is the width of tables that do not go to a terminal.
const plainWidth = 100

func trimRight(s string) string {
	for len(s) > 0 && s[len(s)-1] == ' ' {
		s = s[:len(s)-1]
	}
	return s
}

// view returns an empty view with the flags' settings.
func (t *top) view() *topView {
	return &topView{by: topBy(t.by.value), order: topSort(t.order.value), reverse: t.reverse, filter: t.text, layer: word(t.h.Layer()), marks: map[string]rune{}}
}
