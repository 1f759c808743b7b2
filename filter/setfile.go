package filter

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ParseElement reads an element in the notation of set files: an address, a prefix, or a range of addresses such as
// 192.0.2.1-192.0.2.9; a number, decimal or with 0x, or a range of numbers such as 8000-8999.
func ParseElement(text string) (Element, error) {
	e := parseElement(text)
	return e, e.Err()
}

func parseElement(text string) Element {
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	if strings.Contains(text, "/") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return Element{err: fmt.Errorf("%q is not a prefix; one is written as 192.0.2.0/24 or 2001:db8::/32", shortened(text))}
		}
		return Prefix(p)
	}
	if a, err := netip.ParseAddr(first); err == nil {
		b, err := netip.ParseAddr(last)
		if err != nil {
			return Element{err: fmt.Errorf("%q is not an address", shortened(last))}
		}
		return AddressRange(a, b)
	}
	from, err := parseNumber(first)
	if err != nil {
		return Element{err: err}
	}
	to, err := parseNumber(last)
	if err != nil {
		return Element{err: err}
	}
	return NumberRange(from, to)
}

func parseNumber(text string) (uint64, error) {
	digits, base := text, 10
	if hex, ok := strings.CutPrefix(text, "0x"); ok {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is neither an address nor a number", shortened(text))
	}
	return n, nil
}

// LineError is an error in a file of a set.
type LineError struct {
	File string // as it was opened; may be empty
	Line int    // from 1 on
	Err  error
}

// Error returns the place and the error.
func (e *LineError) Error() string {
	file := e.File
	if file == "" {
		file = "line "
	} else {
		file += ":"
	}
	return fmt.Sprintf("%s%d: %s", file, e.Line, strings.TrimPrefix(e.Err.Error(), "filter: "))
}

// Unwrap returns the error without the place.
func (e *LineError) Unwrap() error { return e.Err }

// maxLine is the longest line of a file, in bytes.
const maxLine = 64 << 10

// ReadElements reads elements: one a line, as for ParseElement, with white space around it. It ignores empty lines and
// comments behind a #. Errors of a line are *LineError, others those of the reader.
func ReadElements(r io.Reader) ([]Element, error) { return readElements(r, "", nil) }

// readElements is ReadElements for a file. If s is not nil, it refuses elements of another kind than the set's.
func readElements(r io.Reader, file string, s *Set) ([]Element, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var elements []Element
	n := 0
	for lines.Scan() {
		n++
		text, _, _ := strings.Cut(lines.Text(), "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		e, err := ParseElement(text)
		if err == nil && s != nil && e.addresses != s.HasAddresses() {
			err = fmt.Errorf("%w: %v in a set of %v", ErrSetKind, e, s.members())
		}
		if err != nil {
			return nil, &LineError{file, n, err}
		}
		elements = append(elements, e)
	}
	if err := lines.Err(); err == bufio.ErrTooLong {
		return nil, &LineError{file, n + 1, fmt.Errorf("the line is longer than %d bytes", maxLine)}
	} else if err != nil {
		return nil, err
	}
	return elements, nil
}

// WriteTo writes the values of the set in the form that ReadElements reads, and returns the number of bytes.
func (s *Set) WriteTo(w io.Writer) (int64, error) {
	b := bufio.NewWriter(w)
	written := int64(0)
	for e := range s.All() {
		n, err := fmt.Fprintln(b, e)
		if written += int64(n); err != nil {
			return written, err
		}
	}
	return written, b.Flush()
}

// Load replaces the set's members by those of a file, see ReadElements. If it fails, the set stays as it was; errors of a
// line are *LineError, those of opening and reading *fs.PathError, others those of Replace.
func (s *Set) Load(path string) error {
	_, err := s.load(path)
	return err
}

// loading is held while a file is loaded, so that a slow load cannot replace newer content by older.
var loading sync.Mutex

// load is Load, and returns the state of the file that it has read.
func (s *Set) load(path string) (fs.FileInfo, error) {
	loading.Lock()
	defer loading.Unlock()
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	elements, err := readElements(f, path, s)
	if err != nil {
		return info, err
	}
	return info, s.Replace(elements)
}

// followEvery is the interval at which Follow looks at a file.
const followEvery = time.Second

// Follow loads the set from a file, as Load does, and keeps it current in the background: whenever the file changes,
// Follow loads it again, until the context ends. It looks every second, and waits until a changed file stays the same for
// one look, so that it does not read half of a file that is written in place; a program that renames a finished file to
// its place is safe in any case. After each further load it calls changed, unless that is nil, with the error of the load
// or nil; if the load failed, the set stays as it was. If the first load fails, Follow does nothing else and returns its
// error.
func (s *Set) Follow(ctx context.Context, path string, changed func(error)) error {
	loaded, err := s.load(path)
	if err != nil {
		return err
	}
	if changed == nil {
		changed = func(error) {}
	}
	tick := time.NewTicker(followEvery)
	go func() {
		defer tick.Stop()
		s.follow(ctx, path, loaded, changed, tick.C)
	}()
	return nil
}

// follow is Follow after the first load, with looks at given times.
func (s *Set) follow(ctx context.Context, path string, loaded fs.FileInfo, changed func(error), look <-chan time.Time) {
	before := loaded
	for {
		select {
		case <-ctx.Done():
			return
		case <-look:
		}
		now, _ := os.Stat(path) // nil if the file is missing; loading it will say so
		if !sameFile(now, loaded) && sameFile(now, before) {
			info, err := s.load(path)
			if info != nil {
				now = info
			}
			if ctx.Err() == nil {
				changed(err)
			}
			loaded = now
		}
		before = now
	}
}

// sameFile reports whether a file has not changed.
func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
