//go:build linux

package nflog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/nfnl"
)

func TestMain(m *testing.M) { lab.Main(m) }

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// message is a message of the subsystem made by another library: attributes behind an nfgenmsg.
func message(t testing.TB, typ, flags, group uint16, attrs ...netlink.Attribute) []byte {
	t.Helper()
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	data := append(binary.BigEndian.AppendUint16([]byte{0, 0}, group), body...)
	m := netlink.Message{Data: data, Header: netlink.Header{
		Length: uint32(unix.SizeofNlMsghdr + len(data)), Type: netlink.HeaderType(unix.NFNL_SUBSYS_ULOG<<8 | typ), Flags: netlink.HeaderFlags(flags),
	}}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// copyOf is a message with a copy, with every attribute that the kernel sends.
func copyOf(t testing.TB, seq uint32, payload []byte) []byte {
	return message(t, 0, 0, 0x8001,
		netlink.Attribute{Type: 1, Data: []byte{8, 0, 4, 0}},
		netlink.Attribute{Type: 10, Data: []byte{0}}, // an empty prefix: ignored
		netlink.Attribute{Type: 4, Data: be32(2)},
		netlink.Attribute{Type: 5, Data: be32(3)},
		netlink.Attribute{Type: 3, Data: append(binary.BigEndian.AppendUint64(nil, 1_700_000_000), binary.BigEndian.AppendUint64(nil, 123456)...)},
		netlink.Attribute{Type: 12, Data: be32(seq)},
		netlink.Attribute{Type: 9, Data: payload},
	)
}

func TestConfigurationBytes(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	c, err := nfnl.NewConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Tell(config(0x8001, 0)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	n, err := unix.Read(fds[1], got)
	if err != nil {
		t.Fatal(err)
	}
	want := message(t, 1, unix.NLM_F_REQUEST, 0x8001,
		netlink.Attribute{Type: 1, Data: []byte{1}},                      // bind
		netlink.Attribute{Type: 2, Data: []byte{0, 0, 0xff, 0xfb, 2, 0}}, // whole packets
		netlink.Attribute{Type: 4, Data: be32(1)},                        // 10 ms
		netlink.Attribute{Type: 3, Data: be32(8 << 10)},                  // datagram
		netlink.Attribute{Type: 5, Data: be32(1)},                        // copies in a datagram
		netlink.Attribute{Type: 6, Data: []byte{0, 1}},                   // numbered
	)
	if !bytes.Equal(got[:n], want) {
		t.Errorf("\ngot  %x\nwant %x", got[:n], want)
	}
}

func TestCopies(t *testing.T) {
	done := append(nfnl.AppendHeader(nil, 20, unix.NLMSG_DONE, 0, 0)[:16], 0, 0, 0, 0) // the kernel ends a gathered datagram with it
	refused := append(nfnl.AppendHeader(nil, 20, unix.NLMSG_ERROR, 0, 0)[:16], 1, 2, 3, 4)
	one, two := copyOf(t, 7, []byte("one")), copyOf(t, 8, []byte("the second"))
	rows := []struct {
		name string
		b    []byte
		want []uint32 // the numbers
	}{
		{"nothing", nil, nil},
		{"one", one, []uint32{7}},
		{"two and the end", bytes.Join([][]byte{one, two, done}, nil), []uint32{7, 8}},
		{"others between", bytes.Join([][]byte{refused, one, message(t, 1, 0, 1), two}, nil), []uint32{7, 8}},
		{"the second cut short", append(bytes.Clone(one), two[:len(two)-1]...), []uint32{7}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			d := Copies(row.b)
			var c Copy
			var got []uint32
			for d.Next(&c) {
				got = append(got, c.Seq)
				payload := map[uint32]string{7: "one", 8: "the second"}[c.Seq]
				if c.Hook != 4 || c.In != 2 || c.Out != 3 || c.Time != 1_700_000_000_123_456_000 || string(c.Payload) != payload {
					t.Errorf("%+v, payload %.100q", c, c.Payload)
				}
			}
			if len(got) != len(row.want) {
				t.Fatalf("%v, want %v", got, row.want)
			}
			for i := range got {
				if got[i] != row.want[i] {
					t.Errorf("%v, want %v", got, row.want)
				}
			}
		})
	}
	t.Run("nothing stays of the one before", func(t *testing.T) {
		d := Copies(append(bytes.Clone(one), message(t, 0, 0, 1)...))
		var c Copy
		for range 2 {
			if !d.Next(&c) {
				t.Fatal("the datagram has two copies")
			}
		}
		if c.Hook != 0 || c.In != 0 || c.Out != 0 || c.Seq != 0 || c.Time != 0 || c.Payload != nil {
			t.Errorf("%+v", c)
		}
	})
}

func FuzzCopies(f *testing.F) {
	one := copyOf(f, 7, []byte("one"))
	f.Add(one)
	f.Add(append(bytes.Clone(one), copyOf(f, 8, nil)...))
	f.Add(message(f, 0, 0, 1, netlink.Attribute{Type: 1, Data: []byte{1}}, netlink.Attribute{Type: 3, Data: []byte{1}}, netlink.Attribute{Type: 12}))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
		var c Copy
		n := 0
		for d := Copies(b); d.Next(&c); n++ {
			if len(c.Payload) > 0 {
				first := uintptr(unsafe.Pointer(unsafe.SliceData(c.Payload)))
				if first < start+nfnl.HeaderLen || first+uintptr(len(c.Payload)) > start+uintptr(len(b)) {
					t.Fatal("the payload is not of the datagram")
				}
			}
		}
		if n > len(b)/unix.SizeofNlMsghdr {
			t.Errorf("%d copies in %d bytes", n, len(b))
		}
		if !bytes.Equal(b, before) {
			t.Error("changed the datagram")
		}
	})
}

func TestOpen(t *testing.T) {
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Do(func() error {
		taken := map[uint16]bool{}
		var logs []*Log
		for range 20 {
			l, err := Open(1<<16, 0)
			if err != nil {
				return err
			}
			logs = append(logs, l)
			if taken[l.Group()] || l.Group() < firstGroup {
				t.Errorf("group %d", l.Group())
			}
			taken[l.Group()] = true
		}
		for _, l := range logs {
			if err := l.Close(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	err = h.Do(func() error {
		return lab.WithoutRights(func() error {
			l, err := Open(1<<16, 0)
			if err == nil {
				err = errors.Join(errors.New("opened"), l.Close())
			}
			return err
		})
	})
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%v, want os.ErrPermission and the capability's name", err)
	}
}

func BenchmarkCopies(b *testing.B) {
	var datagram []byte
	for i := range uint32(Threshold) {
		datagram = append(datagram, copyOf(b, i, make([]byte, 1400))...)
	}
	var c Copy
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for d := Copies(datagram); d.Next(&c); {
			n++
		}
		if n != Threshold {
			b.Fatal(n)
		}
	}
}
