package firewall

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"time"
)

// listeners knows the TCP ports with a listener, in the network namespace in which it was opened. If a connection is
// first seen in its middle, the end without a listener began it.
type listeners struct {
	files []*os.File // tables of the kernel, of that namespace
	ports map[uint16]bool
	read  time.Time
}

// listenersAge is the time for which a list of listeners is used.
const listenersAge = time.Second

func openListeners() (*listeners, error) {
	l := &listeners{}
	for _, name := range []string{"tcp", "tcp6"} {
		f, err := os.Open("/proc/thread-self/net/" + name)
		if errors.Is(err, os.ErrNotExist) && name == "tcp6" { // a kernel without IPv6
			continue
		}
		if err != nil {
			return nil, errors.Join(err, l.close())
		}
		l.files = append(l.files, f)
	}
	return l, nil
}

// on reports whether there is a listener on a port.
func (l *listeners) on(port uint16, _ uint16, now time.Time) bool {
	if now.Sub(l.read) >= listenersAge {
		l.read, l.ports = now, map[uint16]bool{}
		for _, f := range l.files {
			if _, err := f.Seek(0, io.SeekStart); err == nil {
				readListeners(f, l.ports)
			}
		}
	}
	return l.ports[port]
}

// readListeners reads the ports of listening sockets from a table of the kernel (proc_net_tcp, net/ipv4/tcp_ipv4.c).
func readListeners(r io.Reader, ports map[uint16]bool) {
	const listen = "0A"
	lines := bufio.NewScanner(r)
	lines.Scan() // the heads of the columns
	for lines.Scan() {
		fields := bytes.Fields(lines.Bytes())
		if len(fields) < 4 || string(fields[3]) != listen {
			return // listening sockets come first
		}
		i := bytes.LastIndexByte(fields[1], ':')
		if port, err := strconv.ParseUint(string(fields[1][i+1:]), 16, 16); err == nil {
			ports[uint16(port)] = true
		}
	}
}

func (l *listeners) close() error {
	if l == nil {
		return nil
	}
	errs := make([]error, 0, len(l.files))
	for _, f := range l.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
