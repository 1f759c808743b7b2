package main

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unsafe"
)

// waiting are the states of sockets that receive packets for their address: TCP_LISTEN, and TCP_CLOSE for UDP
// (include/net/tcp_states.h).
var waiting = map[string]string{"tcp": "0A", "udp": "07"}

// socketOwners returns the processes with a socket that listens at an address, as far as /proc shows them.
func socketOwners(network string, at netip.AddrPort) (ids []uint32) {
	sockets := map[string]bool{} // named as links in /proc name them
	for _, suffix := range []string{"", "6"} {
		if f, err := os.Open("/proc/self/net/" + network + suffix); err == nil {
			readSockets(f, waiting[network], at, sockets)
			f.Close()
		}
	}
	if len(sockets) == 0 {
		return nil
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is right
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil && sockets[name] {
			id, err := strconv.ParseUint(strings.Split(link, "/")[2], 10, 32)
			if err == nil && !slices.Contains(ids, uint32(id)) {
				ids = append(ids, uint32(id))
			}
		}
	}
	return ids
}

// readSockets adds the sockets of a table of /proc/net that have a state and receive packets for an address.
func readSockets(r io.Reader, state string, at netip.AddrPort, sockets map[string]bool) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Fields(lines.Text()) // sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode
		if len(f) < 10 || f[3] != state {
			continue
		}
		local, ok := parseProcAddress(f[1])
		if ok && local.Port() == at.Port() && (local.Addr().IsUnspecified() || local.Addr() == at.Addr().Unmap().WithZone("")) {
			sockets[fmt.Sprintf("socket:[%s]", f[9])] = true
		}
	}
}

// parseProcAddress parses an address of /proc/net/tcp: hexadecimal 32-bit words in the machine's byte order, and the
// port as a number.
func parseProcAddress(s string) (netip.AddrPort, bool) {
	words, p, ok := strings.Cut(s, ":")
	port, err := strconv.ParseUint(p, 16, 16)
	if !ok || err != nil || len(words) != 8 && len(words) != 32 {
		return netip.AddrPort{}, false
	}
	var b []byte
	for ; words != ""; words = words[8:] {
		w, err := strconv.ParseUint(words[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, false
		}
		n := uint32(w)
		b = append(b, (*[4]byte)(unsafe.Pointer(&n))[:]...)
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(port)), ok
}
