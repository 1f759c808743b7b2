package main

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/itchyny/timefmt-go"
	"github.com/opendivert/divert"
	"github.com/spf13/cobra"
)

// rotation controls a sequence of capture files: the flags -C, -G, -W, -z and -Z of tcpdump.
type rotation struct {
	size    string // the value of -C
	bytes   int64  // size at which the next file begins; 0: no limit
	seconds int    // time after which the next file begins; 0: no limit
	files   int    // 0: no limit
	command string // gets the name of each complete file
	owner   string // user who owns the files
	uid     int
	gid     int
}

// add adds the flags.
func (r *rotation) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&r.size, "file-size", "C", "", "begin another capture file after so many million bytes; `size` may end in k, m or g for KiB, MiB, GiB")
	fl.IntVarP(&r.seconds, "rotate-seconds", "G", 0, "begin another capture file after so many seconds, named by -w with strftime formats: -w %H%M%S.pcapng")
	fl.IntVarP(&r.files, "file-count", "W", 0, "with -C: overwrite the oldest of so many files; with -G: end after so many")
	fl.StringVarP(&r.command, "postrotate-command", "z", "", "run `command` FILE for each complete capture file")
	fl.StringVarP(&r.owner, "relinquish-privileges", "Z", "", "the `user` who owns the capture files; divert itself keeps its rights, which it needs to close the handle")
}

// check refuses values that make no sense.
func (r *rotation) check(file string) (err error) {
	switch {
	case file != "" && file != "-":
	case r.size != "" || r.seconds != 0 || r.files != 0 || r.command != "" || r.owner != "":
		return usagef("-C, -G, -W, -z and -Z need a file to write: -w FILE")
	}
	if r.size != "" {
		if r.bytes, err = fileSize(r.size); err != nil {
			return usagef("--file-size %s: %v", printable(r.size), err)
		}
	}
	switch {
	case r.seconds < 0:
		return usagef("--rotate-seconds %d is negative", r.seconds)
	case r.files < 0:
		return usagef("--file-count %d is negative", r.files)
	case r.files > 0 && r.bytes == 0 && r.seconds == 0:
		return usagef("--file-count goes with --file-size or --rotate-seconds")
	}
	if r.owner != "" {
		if r.uid, r.gid, err = account(r.owner); err != nil {
			return usagef("--relinquish-privileges %s: %v", printable(r.owner), err)
		}
	}
	return nil
}

// fileSize parses a number of million bytes, or of KiB, MiB or GiB.
func fileSize(s string) (int64, error) {
	units := map[byte]float64{'k': 1 << 10, 'm': 1 << 20, 'g': 1 << 30}
	unit, digits := 1e6, s
	if u, ok := units[strings.ToLower(s)[len(s)-1]]; ok {
		unit, digits = u, s[:len(s)-1]
	}
	v, err := strconv.ParseUint(digits, 10, 62)
	if n := float64(v) * unit; err == nil && v > 0 && n < math.MaxInt64 {
		return int64(n), nil
	}
	return 0, errors.New("a size is a whole number of million bytes, 1 or more, or of KiB, MiB or GiB followed by k, m or g")
}

func account(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, errors.New("no such user")
	}
	if uid, err = strconv.Atoi(u.Uid); err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	return uid, gid, err
}

// files is a sink that writes a sequence of capture files.
type files struct {
	rotation
	pattern string // the name of the first file
	filter  string
	warn    func(error)
	handle  *divert.Handle

	current *fileSink
	name    string
	written *countingWriter
	slice   time.Time // the time in the names
	begun   time.Time // time of the first packet in this slice; zero before it
	number  int       // of the file among those of its slice
	times   int       // number of completed slices
}

// errLastFile reports that all requested files are written.
var errLastFile = errors.New("the last capture file is complete")

// countingWriter counts the bytes that go through it.
type countingWriter struct {
	f *os.File
	n int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.f.Write(b)
	w.n += int64(n)
	return n, err
}

// start begins the first file.
func (s *files) start(at time.Time) error {
	s.slice = at
	return s.open()
}

// open begins the next file.
func (s *files) open() error {
	s.name = s.nextName()
	f, err := os.Create(s.name)
	if err != nil {
		return err
	}
	if s.owner != "" {
		if err := f.Chown(s.uid, s.gid); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	s.written = &countingWriter{f: f}
	s.current = &fileSink{w: bufio.NewWriterSize(s.written, bufferSize), file: f, handle: s.handle}
	if s.current.capture, err = newCaptureWriter(s.current.w, s.filter); err == nil {
		err = s.current.flush() // show a live reader the head of the file at once
	}
	return err
}

// nextName returns the name of the next file, formed as tcpdump forms it.
func (s *files) nextName() string {
	name := s.pattern
	if s.seconds > 0 {
		name = timefmt.Format(s.slice, name)
	}
	switch {
	case s.bytes > 0 && s.files > 0:
		return fmt.Sprintf("%s%0*d", name, len(strconv.Itoa(s.files-1)), s.number%s.files)
	case s.bytes > 0 && s.number > 0:
		return name + strconv.Itoa(s.number)
	}
	return name
}

func (s *files) write(r *record) error {
	if s.begun.IsZero() {
		s.begun = r.when
	}
	if err := s.rotate(r.when); err != nil {
		return err
	}
	return s.current.write(r)
}

// rotate begins another file if this one has reached its time or size.
func (s *files) rotate(now time.Time) error {
	late := s.seconds > 0 && now.Sub(s.begun) >= time.Duration(s.seconds)*time.Second
	switch {
	case late:
		if s.times++; s.files > 0 && s.bytes == 0 && s.times >= s.files {
			return errLastFile
		}
		s.begun, s.slice, s.number = now, now, 0
	case s.bytes > 0 && s.written.n+int64(s.current.w.Buffered()) > s.bytes:
		s.number++
	default:
		return nil
	}
	if err := s.end(); err != nil {
		return err
	}
	return s.open()
}

// end completes the current file.
func (s *files) end() error {
	if s.current == nil {
		return nil
	}
	err := s.current.close()
	s.current = nil
	if err != nil || s.command == "" {
		return err
	}
	c := exec.Command(s.command, s.name)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Start(); err != nil {
		s.warn(fmt.Errorf("--postrotate-command: %w", err))
		return nil
	}
	go func() { _ = c.Wait() }() // the result is not checked, as in tcpdump
	return nil
}

func (s *files) statisticsOf(h *divert.Handle) {
	s.handle = h
	s.current.statisticsOf(h)
}

func (s *files) flush() error {
	if s.current == nil {
		return nil
	}
	return s.current.flush()
}

func (s *files) close() error { return s.end() }
