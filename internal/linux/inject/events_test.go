//go:build linux

package inject

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// message returns an rtnetlink message with a body that starts with an interface index at byte 4.
func message(kind uint16, index uint32, size int) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+size)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	if size >= 8 {
		binary.NativeEndian.PutUint32(b[unix.NLMSG_HDRLEN+4:], index)
	}
	return b
}

func TestParseEvents(t *testing.T) {
	cut := message(unix.RTM_DELLINK, 8, 16)
	binary.NativeEndian.PutUint32(cut, 1000)
	tiny := message(unix.RTM_DELLINK, 8, 16)
	binary.NativeEndian.PutUint32(tiny, 3)
	for _, tc := range []struct {
		name  string
		data  []byte
		links []uint32
		addrs int
	}{
		{"link", message(unix.RTM_NEWLINK, 7, 16), []uint32{7}, 0},
		{"two links and an address", slices.Concat(message(unix.RTM_NEWLINK, 7, 32), message(unix.RTM_NEWADDR, 0, 8),
			message(unix.RTM_DELLINK, 9, 16)), []uint32{7, 9}, 1},
		{"length that needs padding", slices.Concat(message(unix.RTM_DELADDR, 0, 9), make([]byte, 3),
			message(unix.RTM_DELLINK, 9, 16)), []uint32{9}, 1},
		{"link message too short", message(unix.RTM_NEWLINK, 7, 8), nil, 0},
		{"other message", message(unix.RTM_NEWROUTE, 7, 16), nil, 0},
		{"longer than the datagram", cut, nil, 0},
		{"shorter than its header", tiny, nil, 0},
		{"nothing", nil, nil, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var links []uint32
			addrs := 0
			parseEvents(tc.data, func(i uint32) { links = append(links, i) }, func() { addrs++ })
			if !slices.Equal(links, tc.links) || addrs != tc.addrs {
				t.Errorf("links %v, %d addresses; want %v, %d", links, addrs, tc.links, tc.addrs)
			}
		})
	}
}

func FuzzParseEvents(f *testing.F) {
	f.Add(message(unix.RTM_NEWLINK, 7, 16))
	f.Add(append(message(unix.RTM_DELADDR, 0, 9), 0, 0, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		calls := 0
		parseEvents(b, func(uint32) { calls++ }, func() { calls++ })
		if calls > len(b)/unix.NLMSG_HDRLEN {
			t.Fatalf("%d events in %d bytes", calls, len(b))
		}
	})
}
