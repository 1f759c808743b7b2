package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opendivert/divert"
)

// sink is the destination of dump's packets.
type sink interface {
	write(r *record) error
	flush() error // writes out buffered records
	close() error
	statisticsOf(h *divert.Handle) // the source of the packets: its losses go into the file
}

// noStatistics is for sinks without a place for statistics.
type noStatistics struct{}

func (noStatistics) statisticsOf(*divert.Handle) {}

// bufferSize is how many bytes of output are buffered before a write.
const bufferSize = 1 << 16

// openSink opens the sink that the flags ask for.
func (d *dump) openSink() (err error) {
	if d.letters.countOnly {
		d.sink = &countSink{out: d.app.out}
		return nil
	}
	if d.write == "" {
		d.sink = &textSink{w: bufio.NewWriterSize(d.app.out, bufferSize), printer: &d.printer, json: d.json}
		return nil
	}
	if sameFile(d.read, d.write) {
		return usagef("%s cannot be read and written at once", printable(d.read))
	}
	r := report{app: d.app, json: d.json}
	d.sink, err = d.app.openCapture(d.write, d.text, d.letters.rotation, r.warn)
	return err
}

// sameFile reports whether two names refer to one file.
func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// textSink prints packets.
type textSink struct {
	noStatistics
	w       *bufio.Writer
	printer *printer
	json    bool
	buf     []byte
}

func (s *textSink) write(r *record) (err error) {
	if s.json {
		s.buf, err = s.printer.appendJSON(s.buf[:0], r)
	} else {
		s.buf = s.printer.append(s.buf[:0], r)
	}
	if err != nil {
		return fmt.Errorf("a packet has no JSON form: %w", err)
	}
	_, err = s.w.Write(s.buf)
	return err
}

func (s *textSink) flush() error { return s.w.Flush() }
func (s *textSink) close() error { return s.w.Flush() }

// fileSink writes packets to a capture file.
type fileSink struct {
	w       *bufio.Writer
	capture *captureWriter
	file    *os.File       // nil: standard output
	handle  *divert.Handle // nil: a capture file is read
}

func (s *fileSink) statisticsOf(h *divert.Handle) { s.handle = h }

func (s *fileSink) write(r *record) error { return s.capture.write(r) }
func (s *fileSink) flush() error          { return s.w.Flush() }

func (s *fileSink) close() error {
	err := s.statistics()
	err = errors.Join(err, s.w.Flush())
	if s.file != nil {
		err = errors.Join(err, s.file.Close())
	}
	return err
}

// statistics ends the file with the counts of its interfaces.
func (s *fileSink) statistics() error {
	if s.handle == nil {
		return s.capture.statistics(0)
	}
	st, err := s.handle.Stats()
	if err != nil {
		return s.capture.statistics(0) // the number of losses is unknown; the packets are there
	}
	return s.capture.statistics(lostOf(&st))
}

// lostOf returns how many packets, or copies of packets, a handle has lost.
func lostOf(st *divert.Stats) uint64 {
	return st.DroppedFull + st.DroppedOld + st.DroppedLong + st.Lost
}

// losses counts the packets lost since its last call, while packets are received. The zero losses has no handle and
// counts none.
type losses struct {
	handle *divert.Handle
	asked  time.Time
	told   uint64
}

// lossesEvery is the least time between two queries of a handle.
const lossesEvery = 100 * time.Millisecond

// next returns the number of lost packets that it has not returned before.
func (l *losses) next() uint64 {
	now := time.Now()
	if l.handle == nil || now.Sub(l.asked) < lossesEvery {
		return 0
	}
	l.asked = now
	st, err := l.handle.Stats()
	if err != nil {
		return 0 // the final statistics will have it
	}
	n := lostOf(&st)
	lost := n - min(n, l.told)
	l.told = max(n, l.told)
	return lost
}
