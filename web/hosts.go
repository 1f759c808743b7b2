package web

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Hosts is a list of names. An entry example.org covers that name and all below it, such as www.example.org, but not
// badexample.org; *.example.org covers only those below. An entry may be an IP address, which covers itself. The methods
// may be called from several goroutines; Match does not wait for the others.
type Hosts struct {
	names   atomic.Pointer[map[string]reach]
	loading sync.Mutex // held while a file is loaded, so that older content cannot replace newer
}

// reach is the set of names that an entry covers.
type reach uint8

const (
	itself reach = 1 << iota // for its own name
	below                    // for the names below it
)

// NewHosts returns an empty list.
func NewHosts() *Hosts { return new(Hosts) }

// Len returns the number of names with an entry.
func (h *Hosts) Len() int {
	if m := h.names.Load(); m != nil {
		return len(*m)
	}
	return 0
}

// Match finds the entry that covers a name, the longest if there are several, and returns it as listed, without the *. It
// ignores case and a final dot. The name is a host name, or an IP address as netip.ParseAddr reads it, without port or
// brackets. For a name in lower case Match allocates nothing.
func (h *Hosts) Match(name string) (entry string, ok bool) {
	m := h.names.Load()
	if m == nil || len(*m) == 0 {
		return "", false
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if strings.Contains(name, ":") {
		if a, err := netip.ParseAddr(name); err == nil {
			name = canonical(a)
		}
	}
	want := itself
	for rest := name; rest != ""; want = below {
		if (*m)[rest]&want != 0 {
			return rest, true
		}
		_, rest, _ = strings.Cut(rest, ".")
	}
	return "", false
}

// canonical writes an address in the list's only form.
func canonical(a netip.Addr) string { return a.Unmap().WithZone("").String() }

// Replace replaces the list by entries in the notation of files. If one is wrong the list stays as it was.
func (h *Hosts) Replace(entries ...string) error {
	m := make(map[string]reach, len(entries))
	for _, e := range entries {
		if err := add(m, e); err != nil {
			return err
		}
	}
	h.names.Store(&m)
	return nil
}

// add adds an entry.
func add(m map[string]reach, text string) error {
	r := itself | below
	name := strings.ToLower(strings.TrimSuffix(text, "."))
	if a, err := netip.ParseAddr(name); err == nil {
		m[canonical(a)] |= itself
		return nil
	}
	if under, ok := strings.CutPrefix(name, "*."); ok {
		r, name = below, under
	}
	if err := checkName(name); err != nil {
		return fmt.Errorf("%q is not a host name: %w", shortened(text), err)
	}
	m[name] |= r
	return nil
}

// checkName returns why a name is invalid (RFC 1123 section 2.1, and the underscore, which occurs in practice).
func checkName(name string) error {
	if name == "" || len(name) > 253 {
		return errors.New("it must have 1 to 253 characters")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return errors.New("between dots there must be 1 to 63 characters")
		}
		for _, c := range label {
			switch {
			case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
			case c >= 0x80:
				return errors.New("write names with other letters as they are sent, in the form xn--…")
			default:
				return fmt.Errorf("it has the character %q", c)
			}
		}
	}
	return nil
}

// shortened cuts a text for a message.
func shortened(text string) string {
	if len(text) > 60 {
		return text[:60] + "…"
	}
	return text
}

// LineError is an error in a line of a list.
type LineError struct {
	File string // as it was opened; may be empty
	Line int    // from 1 on
	Err  error
}

// Error returns the place and the error.
func (e *LineError) Error() string {
	if e.File == "" {
		return fmt.Sprintf("line %d: %v", e.Line, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

// Unwrap returns the error.
func (e *LineError) Unwrap() error { return e.Err }

// maxLine is the longest line of a list, in bytes.
const maxLine = 64 << 10

// Read replaces the list by that of r: one entry a line, with white space around it. It ignores empty lines and text
// behind a #. In a line of a hosts file, an address with names behind it, the names are the entries, except localhost and
// its kin, with which such files begin. If Read fails the list stays as it was; errors of a line are *LineError, others
// those of the reader.
func (h *Hosts) Read(r io.Reader) error {
	m, err := read(r, "")
	if err == nil {
		h.names.Store(&m)
	}
	return err
}

// machineNames are the names by which hosts files name the machine itself.
var machineNames = map[string]bool{
	"localhost": true, "localhost.localdomain": true, "local": true, "broadcasthost": true, "ip6-localhost": true, "ip6-loopback": true,
	"ip6-localnet": true, "ip6-mcastprefix": true, "ip6-allnodes": true, "ip6-allrouters": true, "ip6-allhosts": true, "0.0.0.0": true,
}

func read(r io.Reader, file string) (map[string]reach, error) {
	m := make(map[string]reach)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() {
		n++
		text, _, _ := strings.Cut(lines.Text(), "#")
		if n == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		fields := strings.Fields(text)
		hostsFile := false
		if len(fields) > 1 {
			address, _, _ := strings.Cut(fields[0], "%") // fe80::1%lo0
			if _, err := netip.ParseAddr(address); err != nil {
				return nil, &LineError{file, n, errors.New("there must be one name a line, or names behind an address as in a hosts file")}
			}
			fields, hostsFile = fields[1:], true
		}
		for _, f := range fields {
			if hostsFile && machineNames[strings.ToLower(f)] {
				continue
			}
			if err := add(m, f); err != nil {
				return nil, &LineError{file, n, err}
			}
		}
	}
	if err := lines.Err(); err == bufio.ErrTooLong {
		return nil, &LineError{file, n + 1, fmt.Errorf("the line is longer than %d bytes", maxLine)}
	} else if err != nil {
		return nil, err
	}
	return m, nil
}

// Load replaces the list by that of a file, see Read. Errors of opening and reading are *fs.PathError.
func (h *Hosts) Load(path string) error {
	_, err := h.load(path)
	return err
}

// load is Load, and returns the state of the file that it has read.
func (h *Hosts) load(path string) (fs.FileInfo, error) {
	h.loading.Lock()
	defer h.loading.Unlock()
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m, err := read(f, path)
	if err == nil {
		h.names.Store(&m)
	}
	return info, err
}

// Follow loads a file, as Load does, and keeps the list current in the background: whenever the file changes, Follow
// loads it again, until ctx ends. It looks every second, and waits until a changed file stays the same for one look, so
// that it does not read half of a file that is written in place. After each further load it calls changed, unless that is
// nil, with the error of the load or nil; if the load failed, the list stays as it was. If the first load fails, Follow
// returns its error and does nothing else.
func (h *Hosts) Follow(ctx context.Context, path string, changed func(error)) error {
	loaded, err := h.load(path)
	if err != nil {
		return err
	}
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for before := loaded; ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now, _ := os.Stat(path) // nil if the file is missing; loading it will say so
			if !sameFile(now, loaded) && sameFile(now, before) {
				info, err := h.load(path)
				if info != nil {
					now = info
				}
				if changed != nil && ctx.Err() == nil {
					changed(err)
				}
				loaded = now
			}
			before = now
		}
	}()
	return nil
}

// sameFile reports whether a file has not changed.
func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
