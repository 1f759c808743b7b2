package main

import (
	"bufio"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/internal/clock"
	"github.com/spf13/cobra"
)

// traceFlag is --write of commands that decide about packets.
type traceFlag struct{ path string }

func (f *traceFlag) add(cmd *cobra.Command, what string) {
	cmd.Flags().StringVarP(&f.path, "write", "w", "", "also write "+what+" to a pcapng `file`, with the process and the verdict of each; - is standard output")
}

// trace writes the packets of a run to a capture file, with the verdict on each. Packets that the command sends in
// their place appear on another interface of the file. The nil trace writes nothing. Several goroutines may use it.
type trace struct {
	processes *processes // nil: unknown

	mu      sync.Mutex
	sink    sink
	clock   *wallClock
	names   interfaces
	record  record
	losses  losses
	written uint64
}

// open begins the file; it returns nil without --write.
func (f *traceFlag) open(a *app, text string, warn func(error)) (*trace, error) {
	switch {
	case f.path == "":
		return nil, nil
	case f.path == "-" && a.colour:
		return nil, errTerminal
	}
	t := &trace{clock: newWallClock(), names: interfaces{}, record: record{live: true}}
	var err error
	t.sink, err = a.openCapture(f.path, text, rotation{}, warn)
	return t, err
}

// errTerminal refuses to write a capture file to a terminal.
var errTerminal = usagef("a capture file cannot go to a terminal; send it to a program or a file")

// received writes packets received from one of the queues of a handle. verdict returns the verdict on each.
func (t *trace) received(ps []divert.Packet, queue int, verdict func(i int) capfile.Verdict) error {
	return t.write(ps, queue, func(i int) {
		t.record.verdict, t.record.sent = verdict(i), false
	})
}

// sent writes packets that were sent.
func (t *trace) sent(ps []divert.Packet) error {
	now := clock.Now()
	return t.write(ps, 0, func(int) {
		t.record.verdict, t.record.sent, t.record.when = capfile.Sent, true, t.clock.time(now)
	})
}

func (t *trace) write(ps []divert.Packet, queue int, finish func(i int)) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range ps {
		r := &t.record
		r.set(&ps[i], t.clock, t.names)
		r.ascribe(t.processes)
		r.queue = queue
		finish(i)
		if r.lost = 0; !r.sent {
			r.lost = t.losses.next()
		}
		if err := t.sink.write(r); err != nil {
			return err
		}
		t.written++
	}
	return nil
}

// count returns how many packets were written.
func (t *trace) count() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.written
}

// about returns the file's counters for metrics.
func (t *trace) about() metricsAbout {
	if t == nil {
		return metricsAbout{}
	}
	return metricsAbout{written: t.count}
}

// flush writes out buffered packets.
func (t *trace) flush() error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.sink.flush()
}

// close ends the file with the statistics of the handle, which must still be open.
func (t *trace) close(h *divert.Handle) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sink.statisticsOf(h)
	return t.sink.close()
}

// openCapture begins a capture file, or a sequence of them; "-" is standard output. text is the filter that the packets
// match; warn gets errors that do not stop the run.
func (a *app) openCapture(path, text string, r rotation, warn func(error)) (sink, error) {
	if path != "-" {
		f := &files{rotation: r, pattern: path, filter: text, warn: warn}
		return f, f.start(time.Now())
	}
	s := &fileSink{w: bufio.NewWriterSize(a.rawOut, bufferSize)}
	var err error
	if s.capture, err = newCaptureWriter(s.w, text); err == nil {
		err = s.flush() // show a live reader the head of the file at once
	}
	return s, err
}

// openTraced opens a handle; if its packets are written, it reports their processes where possible.
func (f *handleFlags) openTraced(p *filter.Program, flags divert.Flag, t *trace, opts ...divert.Option) (h *divert.Handle, err error) {
	if t == nil {
		return f.open(p, flags, opts...)
	}
	h, t.processes, err = f.openWithProcesses(p, flags, opts...)
	t.losses.handle = h
	return h, err
}

// endTrace ends the capture file of a run; the summary then has the number of packets in it.
func (r *report) endTrace(t *trace, h *divert.Handle) error {
	if t == nil {
		return nil
	}
	r.written = &t.written
	return t.close(h)
}
