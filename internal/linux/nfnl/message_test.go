//go:build linux

package nfnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// within reports whether part lies in the memory of b.
func within(part, b []byte) bool {
	if len(part) == 0 {
		return true
	}
	first := uintptr(unsafe.Pointer(unsafe.SliceData(part)))
	start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	return first >= start && first+uintptr(len(part)) <= start+uintptr(len(b))
}

// message is an nfnetlink message made by another library.
func message(t testing.TB, typ uint16, resource uint16, attrs ...netlink.Attribute) []byte {
	t.Helper()
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	data := append(binary.BigEndian.AppendUint16([]byte{0, 0}, resource), body...)
	m := netlink.Message{Header: netlink.Header{Length: uint32(16 + len(data)), Type: netlink.HeaderType(typ)}, Data: data}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refusal is an NLMSG_ERROR message with a code.
func refusal(code int32) []byte {
	b := AppendHeader(nil, unix.SizeofNlMsghdr+4, unix.NLMSG_ERROR, 0, 0)[:unix.SizeofNlMsghdr]
	return binary.NativeEndian.AppendUint32(b, uint32(code))
}

func TestMessages(t *testing.T) {
	one := message(t, Type(3, 0), 7, netlink.Attribute{Type: 1, Data: []byte("abc")})
	two := message(t, Type(3, 1), 0xfffe)
	type want struct {
		typ, resource uint16
		body          int // bytes
	}
	rows := []struct {
		name string
		b    []byte
		want []want
	}{
		{"nothing", nil, nil},
		{"a header cut short", one[:15], nil},
		{"one", one, []want{{0x300, 7, 8}}},
		{"two", append(bytes.Clone(one), two...), []want{{0x300, 7, 8}, {0x301, 0xfffe, 0}}},
		{"the second cut short", append(bytes.Clone(one), two[:19]...), []want{{0x300, 7, 8}}},
		{"a length of nothing", make([]byte, 40), nil},
		{"a length past the end", binary.NativeEndian.AppendUint32(make([]byte, 0, 40), 1<<31)[:40], nil},
		{"no nfnetlink message", refusal(0), []want{{unix.NLMSG_ERROR, 0, 4}}},
		{"a header only", AppendHeader(nil, 16, Type(3, 0), 0, 9)[:16], []want{{0x300, 0, 0}}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var got []want
			for it := Messages(row.b); it.Next(); {
				got = append(got, want{it.Type, it.Resource, len(it.Body)})
			}
			if len(got) != len(row.want) {
				t.Fatalf("%v, want %v", got, row.want)
			}
			for i := range got {
				if got[i] != row.want[i] {
					t.Errorf("message %d: %v, want %v", i, got[i], row.want[i])
				}
			}
		})
	}
}

func TestErrno(t *testing.T) {
	rows := []struct {
		name string
		b    []byte
		want error
	}{
		{"acknowledged", refusal(0), nil},
		{"refused", refusal(-int32(unix.EPERM)), unix.EPERM},
		{"cut short", AppendHeader(nil, 16, unix.NLMSG_ERROR, 0, 0)[:16], unix.EBADMSG},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			it := Messages(row.b)
			if !it.Next() {
				t.Fatal("no message")
			}
			if err := it.Errno(); !errors.Is(err, row.want) || (err == nil) != (row.want == nil) {
				t.Errorf("%v, want %v", err, row.want)
			}
		})
	}
}

func TestMessageBytes(t *testing.T) {
	m := NewMessage(Type(3, 2), 0x8001)
	m.Attr(1, 1, 0, 0, 0, 2).Attr32(3, 0xdeadbeef).Attr(4)
	got := m.finish(unix.NLM_F_REQUEST)
	want := message(t, Type(3, 2), 0x8001,
		netlink.Attribute{Type: 1, Data: []byte{1, 0, 0, 0, 2}},
		netlink.Attribute{Type: 3, Data: []byte{0xde, 0xad, 0xbe, 0xef}},
		netlink.Attribute{Type: 4},
	)
	binary.NativeEndian.PutUint16(want[6:], unix.NLM_F_REQUEST)
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
}

func FuzzMessages(f *testing.F) {
	one := message(f, Type(3, 0), 7, netlink.Attribute{Type: 1, Data: []byte("abc")})
	f.Add(one)
	f.Add(append(bytes.Clone(one), one...))
	f.Add(refusal(-1))
	f.Add(append([]byte{17, 0, 0, 0}, make([]byte, 20)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		type seen struct {
			typ  uint16
			body []byte
		}
		var got []seen
		for it := Messages(b); it.Next(); {
			if !within(it.Body, b) || len(got) > len(b)/16 {
				t.Fatalf("message %d: %d bytes, not within the %d", len(got), len(it.Body), len(b))
			}
			_ = it.Errno()
			got = append(got, seen{it.Type, it.Body})
		}
		theirs, err := syscall.ParseNetlinkMessage(b)
		if err != nil || len(theirs) != len(got) {
			// The other decoder refuses a whole message with a damaged tail.
			if err == nil && len(theirs) > len(got) {
				t.Fatalf("%d messages, the other decoder has %d", len(got), len(theirs))
			}
			return
		}
		for i, m := range theirs {
			own := len(m.Data) - len(got[i].body) // the nfgenmsg, which the other leaves in the data
			if m.Header.Type != got[i].typ || own != 0 && own != HeaderLen-unix.SizeofNlMsghdr || !bytes.HasSuffix(m.Data, got[i].body) {
				t.Errorf("message %d: %x %x, the other decoder has %x %x", i, got[i].typ, got[i].body, m.Header.Type, m.Data)
			}
		}
	})
}

func FuzzAttrs(f *testing.F) {
	for _, attrs := range [][]netlink.Attribute{
		{{Type: 1, Data: []byte{1, 2, 3, 4}}, {Type: 0x8002, Data: []byte("abcde")}},
		{{Type: 0x4001}},
		nil,
	} {
		b, err := netlink.MarshalAttributes(attrs)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{3, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []netlink.Attribute
		it := Attrs(b)
		for it.Next() {
			if !within(it.Data, b) || len(got) > len(b)/AttrLen {
				t.Fatalf("attribute %d: %d bytes, not within the %d", len(got), len(it.Data), len(b))
			}
			if v := it.Uint32(); len(it.Data) < 4 && v != 0 || len(it.Data) >= 4 && v != binary.BigEndian.Uint32(it.Data) {
				t.Errorf("attribute %d: %x is %d", len(got), it.Data, v)
			}
			got = append(got, netlink.Attribute{Type: it.Type, Data: it.Data})
		}
		rest := it.rest
		theirs, err := netlink.UnmarshalAttributes(b)
		if err != nil {
			return
		}
		for i, a := range theirs {
			if i >= len(got) && len(rest) >= AttrLen && binary.NativeEndian.Uint16(rest) < AttrLen {
				return // an attribute shorter than its own header ends ours
			}
			if i >= len(got) {
				t.Fatalf("%d attributes, the other decoder has %d", len(got), len(theirs))
			}
			if got[i].Type != a.Type&0x3fff || !bytes.Equal(got[i].Data, a.Data) {
				t.Errorf("attribute %d: %d %x, the other decoder has %d %x", i, got[i].Type, got[i].Data, a.Type, a.Data)
			}
		}
	})
}
