//go:build linux

package nexthop

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// tracking knows whether the kernel tracks connections in a namespace (nf_conntrack).
type tracking struct {
	in    func(func() error) error // runs a function on a thread in the namespace
	file  *os.File                 // has the number of connections; nil until there is one
	stat  bool                     // file is a table of statistics
	asked bool                     // since the last refresh
	any   bool
}

// module exists where the kernel has connection tracking, as a module or built in.
const module = "/sys/module/nf_conntrack"

// trackingFiles have the number of connections of the namespace of the thread that opens them. A kernel may have either; an
// unprivileged namespace's sysctls hide it in older ones. (net/netfilter/nf_conntrack_standalone.c.)
var trackingFiles = []string{"/proc/sys/net/netfilter/nf_conntrack_count", "/proc/thread-self/net/stat/nf_conntrack"}

// tracked reports whether any connection is tracked, including those whose first packet is on its way; true if that cannot be
// found out.
func (t *tracking) tracked() bool {
	if !t.asked {
		t.any, t.asked = t.ask(), true
	}
	return t.any
}

func (t *tracking) ask() bool {
	if t.file == nil {
		if _, err := os.Stat(module); errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(filepath.Dir(module)); err == nil {
				return false
			}
		}
		if err := t.in(t.open); err != nil {
			return true
		}
	}
	var b [1024]byte
	n, err := t.file.ReadAt(b[:], 0)
	if n == 0 && err != nil {
		return true
	}
	count, ok := connections(b[:n], t.stat)
	return !ok || count != 0
}

func (t *tracking) open() (err error) {
	for i, name := range trackingFiles {
		if t.file, err = os.Open(name); err == nil {
			t.stat = i > 0
			return nil
		}
	}
	return err
}

// close closes the file of the number.
func (t *tracking) close() error {
	if t.file == nil {
		return nil
	}
	return t.file.Close()
}

// connections reads the number of connections: a decimal number, or the first column of a table of statistics below its
// title, in hexadecimal digits, which is the same in each row.
func connections(b []byte, stat bool) (n uint64, ok bool) {
	base := 10
	if stat {
		_, rows, _ := bytes.Cut(b, []byte("\n"))
		b, base = rows, 16
	}
	fields := bytes.Fields(b)
	if len(fields) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(fields[0]), base, 64)
	if err != nil {
		return 0, false
	}
	return n, true
}
