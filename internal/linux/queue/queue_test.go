//go:build linux

package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/race"
)

func TestMain(m *testing.M) {
	if os.Getenv(meterVariable) != "" {
		_, err := NewMeter()
		fmt.Print(err)
		os.Exit(0)
	}
	lab.Main(m)
}

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// message is a message of the subsystem made by another library: attributes behind an nfgenmsg.
func message(t testing.TB, typ, flags, num uint16, attrs ...netlink.Attribute) []byte {
	t.Helper()
	body, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		t.Fatal(err)
	}
	data := append(binary.BigEndian.AppendUint16([]byte{0, 0}, num), body...)
	m := netlink.Message{Data: data, Header: netlink.Header{
		Length: uint32(unix.SizeofNlMsghdr + len(data)), Type: netlink.HeaderType(unix.NFNL_SUBSYS_QUEUE<<8 | typ), Flags: netlink.HeaderFlags(flags),
	}}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sentBy returns a queue whose messages arrive at the other socket, instead of at the kernel.
func sentBy(t testing.TB) (q *Queue, there *nfnl.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*nfnl.Conn
	for i, fd := range fds {
		if conns[i], err = nfnl.NewConn(fd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conns[i].Close() })
	}
	return &Queue{Conn: conns[0], num: 0x8001}, conns[1]
}

// next receives one message of a pair.
func next(t testing.TB, c *nfnl.Conn) []byte {
	t.Helper()
	b := make([]byte, 1<<20)
	r := c.NewReader(1)
	r.Slot(0, b)
	if n, err := r.Poll(1); n != 1 || err != nil {
		t.Fatalf("nothing was sent: %d, %v", n, err)
	}
	n, _ := r.Len(0)
	return b[:n]
}

func TestConfigurationBytes(t *testing.T) {
	q, there := sentBy(t)
	if err := q.Tell(q.config(Options{MaxLen: 5})); err != nil {
		t.Fatal(err)
	}
	want := message(t, 2, unix.NLM_F_REQUEST, 0x8001,
		netlink.Attribute{Type: 1, Data: []byte{1, 0, 0, 0}},          // bind
		netlink.Attribute{Type: 2, Data: []byte{0, 0, 0xff, 0xfb, 2}}, // whole packets
		netlink.Attribute{Type: 3, Data: be32(5)},                     // length
		netlink.Attribute{Type: 4, Data: be32(1<<0 | 1<<2)},           // flags that change
		netlink.Attribute{Type: 5, Data: be32(1 << 2)},                // packets before segmentation
	)
	if got := next(t, there); !bytes.Equal(got, want) {
		t.Errorf("bind\ngot  %x\nwant %x", got, want)
	}
	if err := q.Tell(q.config(Options{Cuts: true})); err != nil {
		t.Fatal(err)
	}
	want = message(t, 2, unix.NLM_F_REQUEST, 0x8001,
		netlink.Attribute{Type: 1, Data: []byte{1, 0, 0, 0}},
		netlink.Attribute{Type: 2, Data: []byte{0, 0, 0, 0, 1}}, // nothing of packets
		netlink.Attribute{Type: 3, Data: be32(0)},               // room for none
		netlink.Attribute{Type: 4, Data: be32(1<<0 | 1<<2)},
		netlink.Attribute{Type: 5, Data: be32(1 << 0)}, // they go on, after segmentation
	)
	if got := next(t, there); !bytes.Equal(got, want) {
		t.Errorf("a queue that cuts\ngot  %x\nwant %x", got, want)
	}
	if err := q.Configure(Options{MaxLen: 9, FailOpen: true, RcvBuf: 1 << 16}); err != nil {
		t.Fatal(err)
	}
	want = message(t, 2, unix.NLM_F_REQUEST, 0x8001,
		netlink.Attribute{Type: 3, Data: be32(9)},
		netlink.Attribute{Type: 4, Data: be32(1<<0 | 1<<2)},
		netlink.Attribute{Type: 5, Data: be32(1<<2 | 1<<0)},
	)
	if got := next(t, there); !bytes.Equal(got, want) {
		t.Errorf("configure\ngot  %x\nwant %x", got, want)
	}
}

func TestVerdictBytes(t *testing.T) {
	payload := []byte("a packet of 21 bytes.")
	header := func(verdict, id uint32) netlink.Attribute {
		return netlink.Attribute{Type: 2, Data: append(be32(verdict), be32(id)...)}
	}
	priority := netlink.Attribute{Type: 21, Data: be32(0xd0000015)}
	const single, upTo = 1, 3
	rows := []struct {
		name  string
		add   func(*Verdicts) error
		typ   uint16
		attrs []netlink.Attribute
	}{
		{"drop", func(v *Verdicts) error { return v.Add(1, Drop, Option{}) }, single, []netlink.Attribute{header(0, 1)}},
		{"accept", func(v *Verdicts) error { return v.Add(1<<32-1, Accept, Option{}) }, single, []netlink.Attribute{header(1, 1<<32-1)}},
		{"repeat with a priority", func(v *Verdicts) error {
			return v.Add(7, Repeat, Option{Priority: 0xd0000015, SetPriority: true})
		}, single, []netlink.Attribute{header(4, 7), priority}},
		{"a priority that is not to be set", func(v *Verdicts) error {
			return v.Add(7, Repeat, Option{Priority: 0xd0000015})
		}, single, []netlink.Attribute{header(4, 7)}},
		{"a payload", func(v *Verdicts) error {
			return v.Add(8, Accept, Option{Payload: payload})
		}, single, []netlink.Attribute{header(1, 8), {Type: 10, Data: payload}}},
		{"a payload without padding", func(v *Verdicts) error {
			return v.Add(8, Accept, Option{Payload: payload[:20]})
		}, single, []netlink.Attribute{header(1, 8), {Type: 10, Data: payload[:20]}}},
		{"all of it", func(v *Verdicts) error {
			return v.Add(9, Repeat, Option{Priority: 0xd0000015, SetPriority: true, Payload: payload})
		}, single, []netlink.Attribute{header(4, 9), priority, {Type: 10, Data: payload}}},
		{"up to", func(v *Verdicts) error { v.AddUpTo(10, Accept, Option{}); return nil }, upTo, []netlink.Attribute{header(1, 10)}},
		{"up to, with a priority", func(v *Verdicts) error {
			v.AddUpTo(10, Repeat, Option{Priority: 0xd0000015, SetPriority: true})
			return nil
		}, upTo, []netlink.Attribute{header(4, 10), priority}},
	}
	q, there := sentBy(t)
	v, err := q.NewVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if err := errors.Join(row.add(v), v.Flush()); err != nil {
				t.Fatal(err)
			}
			want := message(t, row.typ, unix.NLM_F_REQUEST, 0x8001, row.attrs...)
			if got := next(t, there); !bytes.Equal(got, want) {
				t.Errorf("\ngot  %x\nwant %x", got, want)
			}
			all = append(all, want...)
		})
	}
	t.Run("one after the other", func(t *testing.T) {
		for _, row := range rows {
			if err := row.add(v); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := next(t, there); !bytes.Equal(got, all) {
			t.Errorf("\ngot  %x\nwant %x", got, all)
		}
	})
	t.Run("more than one call takes", func(t *testing.T) {
		const n = 2000
		for id := range uint32(n) {
			if err := v.Add(id, Accept, Option{Payload: payload}); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Flush(); err != nil {
			t.Fatal(err)
		}
		id := uint32(0)
		for id < n {
			for it := nfnl.Messages(next(t, there)); it.Next(); id++ {
				a := nfnl.Attrs(it.Body)
				if !a.Next() || binary.BigEndian.Uint32(a.Data[4:]) != id || !a.Next() || !bytes.Equal(a.Data, payload) || a.Next() {
					t.Fatalf("verdict %d: %x", id, it.Body)
				}
			}
		}
	})
	t.Run("too long", func(t *testing.T) {
		if err := v.Add(1, Accept, Option{Payload: make([]byte, MaxPayload+1)}); !errors.Is(err, ErrTooLong) {
			t.Errorf("%v, want ErrTooLong", err)
		}
		if err := v.Add(1, Accept, Option{Payload: make([]byte, MaxPayload)}); err != nil {
			t.Error(err)
		}
		if err := v.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := next(t, there); len(got) != nfnl.HeaderLen+12+4+MaxPayload+1 {
			t.Errorf("%d bytes", len(got))
		}
	})
}

// If the kernel has no memory for a batch, its messages go one by one; Unsent returns those that the kernel refuses even so.
func TestVerdictsThatDoNotReachTheKernel(t *testing.T) {
	var buffer int // of the sending socket
	set := func(q *Queue, size int) {
		if err := q.Control(func(fd uintptr) {
			buffer, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, size)
		}); err != nil {
			t.Fatal(err)
		}
	}
	q, there := sentBy(t)
	v, err := q.NewVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	set(q, 20000) // which the kernel doubles; smaller than what the batch was made for, so the whole batch is refused
	small, large := make([]byte, 100), make([]byte, 50000)
	const n = 10
	o := Option{Priority: 7, SetPriority: true, Payload: small, Tag: 3}
	for id := range uint32(n) {
		if id == n/2 {
			o.Payload = large // too long also alone
		} else if id > n/2 {
			o.Payload = small
		}
		if err := v.Add(id, Repeat, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Flush(); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("flush: %v, want EMSGSIZE", err)
	}
	u := v.Unsent()
	want := Unsent{ID: n / 2, Verdict: Repeat, Payload: true, Option: Option{Priority: 7, SetPriority: true, Tag: 3}}
	if len(u) != 1 || u[0].Option.Payload != nil || u[0].ID != want.ID || u[0].Verdict != want.Verdict || !u[0].Payload || u[0].UpTo ||
		u[0].Option.Tag != 3 || u[0].Option.Priority != 7 || !u[0].Option.SetPriority {
		t.Errorf("unsent %+v, want %+v", u, want)
	}
	for id := range uint32(n) {
		if id == n/2 {
			continue
		}
		a := nfnl.Attrs(next(t, there)[nfnl.HeaderLen:])
		if !a.Next() || binary.BigEndian.Uint32(a.Data[4:]) != id {
			t.Fatalf("verdict %d: %.100x", id, a.Data)
		}
	}
	// A verdict without a payload can be added again as it was.
	for err = nil; err == nil; {
		v.AddUpTo(99, Accept, Option{Tag: 5}) // until nothing has room any more: nobody reads
		err = v.Flush()
	}
	if u = v.Unsent(); len(u) != 1 || u[0].ID != 99 || !u[0].UpTo || u[0].Verdict != Accept || u[0].Payload || u[0].Option.Tag != 5 {
		t.Fatalf("unsent %+v", u)
	}
	set(q, buffer)
	u[0].Add(v)
	if err := v.Flush(); err != nil || v.Unsent() != nil {
		t.Errorf("flush with room: %v", err)
	}
}

// whole is a packet message with every attribute that the kernel sends.
func whole(t testing.TB, payload []byte) []byte {
	return message(t, 0, 0, 0x8001,
		netlink.Attribute{Type: 1, Data: append(be32(0xdeadbeef), 0x08, 0x00, 4, 0)},
		netlink.Attribute{Type: 4, Data: append(binary.BigEndian.AppendUint64(nil, 1_700_000_000), binary.BigEndian.AppendUint64(nil, 123456)...)},
		netlink.Attribute{Type: 5, Data: be32(2)},
		netlink.Attribute{Type: 6, Data: be32(3)},
		netlink.Attribute{Type: 9, Data: []byte{0, 6, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0}}, // hardware address: ignored
		netlink.Attribute{Type: 21, Data: be32(6)},
		netlink.Attribute{Type: 13, Data: be32(70000)},
		netlink.Attribute{Type: 14, Data: be32(1 | 2 | 4)},
		netlink.Attribute{Type: 10, Data: payload},
	)
}

// refusal is the kernel's answer to a verdict with a tag (struct nlmsgerr of linux/netlink.h).
func refusal(errno unix.Errno, tag uint32) []byte {
	b := nfnl.AppendHeader(nil, 36, unix.NLMSG_ERROR, 0, 0)[:16]
	b = binary.NativeEndian.AppendUint32(b, uint32(-int32(errno)))
	refused := nfnl.AppendHeader(nil, 32, nfnl.Type(unix.NFNL_SUBSYS_QUEUE, 1), unix.NLM_F_REQUEST, 1)[:16]
	binary.NativeEndian.PutUint32(refused[8:], tag)
	return append(b, refused...)
}

func TestParse(t *testing.T) {
	payload := []byte("payload")
	header := netlink.Attribute{Type: 1, Data: append(be32(1), 8, 0, 0)}
	refused := binary.NativeEndian.AppendUint32(nfnl.AppendHeader(nil, 20, unix.NLMSG_ERROR, 0, 0)[:16], uint32(0xfffffffe))
	rows := []struct {
		name string
		b    []byte
		kind Kind
		want Message
	}{
		{"every attribute", whole(t, payload), KindPacket, Message{
			ID: 0xdeadbeef, Hook: HookPostrouting, In: 2, Out: 3, Priority: 6, Length: 70000, Time: 1_700_000_000_123_456_000,
			Payload: payload, ChecksumNotReady: true, ChecksumNotVerified: true, GSO: true,
		}},
		{"the least", message(t, 0, 0, 1, header), KindPacket, Message{ID: 1}},
		{"the length is the payload's", message(t, 0, 0, 1, header, netlink.Attribute{Type: 10, Data: payload}), KindPacket,
			Message{ID: 1, Length: 7, Payload: payload}},
		{"a bridge passes it on", message(t, 0, 0, 1, header, netlink.Attribute{Type: 8, Data: be32(5)}), KindPacket, Message{ID: 1, Bridged: true}},
		{"no packet header", message(t, 0, 0, 1, netlink.Attribute{Type: 10, Data: payload}), KindOther, Message{}},
		{"a packet header cut short", message(t, 0, 0, 1, netlink.Attribute{Type: 1, Data: be32(1)}), KindOther, Message{}},
		{"another message", message(t, 2, 0, 1, header), KindOther, Message{}},
		{"nothing", nil, KindOther, Message{}},
		{"an acknowledgement", append(nfnl.AppendHeader(nil, 20, unix.NLMSG_ERROR, 0, 0)[:16], 0, 0, 0, 0), KindOther, Message{}},
		{"a refusal", refused, KindError, Message{}},
		{"a refusal that names the verdict", refusal(unix.ENOENT, 0x123), KindError, Message{Tag: 0x123}},
		{"a refusal without an error number", nfnl.AppendHeader(nil, 16, unix.NLMSG_ERROR, 0, 0)[:16], KindError, Message{}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var m Message
			if kind := m.Parse(row.b); kind != row.kind {
				t.Fatalf("kind %d, want %d", kind, row.kind)
			}
			if row.kind == KindError && m.Tag != row.want.Tag {
				t.Errorf("tag %#x, want %#x", m.Tag, row.want.Tag)
			}
			if row.kind != KindPacket {
				return
			}
			if !bytes.Equal(m.Payload, row.want.Payload) {
				t.Errorf("payload %.100q", m.Payload)
			}
			got, want := m, row.want
			got.Payload, want.Payload = nil, nil
			if !equal(got, want) {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

func equal(a, b Message) bool {
	return a.ID == b.ID && a.Hook == b.Hook && a.In == b.In && a.Out == b.Out && a.Priority == b.Priority && a.Length == b.Length &&
		a.Time == b.Time && a.ChecksumNotReady == b.ChecksumNotReady && a.ChecksumNotVerified == b.ChecksumNotVerified && a.GSO == b.GSO
}

func FuzzParse(f *testing.F) {
	f.Add(whole(f, []byte("payload")))
	f.Add(message(f, 0, 0, 1, netlink.Attribute{Type: 1, Data: make([]byte, 7)}))
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		m := Message{ID: 99, Payload: []byte("of the last message")}
		kind := m.Parse(b)
		if !bytes.Equal(b, before) {
			t.Error("changed the datagram")
		}
		if kind != KindPacket {
			return
		}
		if len(m.Payload) > 0 {
			start := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
			first := uintptr(unsafe.Pointer(unsafe.SliceData(m.Payload)))
			if first < start+nfnl.HeaderLen || first+uintptr(len(m.Payload)) > start+uintptr(len(b)) {
				t.Fatal("the payload is not of the datagram")
			}
		}
		if m.Length == 0 && len(m.Payload) > 0 {
			t.Errorf("a length of 0 with %d bytes", len(m.Payload))
		}
	})
}

// open opens a queue in a host of its own.
func open(t testing.TB, o Options) (*Queue, *lab.Host) {
	t.Helper()
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	var q *Queue
	if err := h.Do(func() (err error) { q, err = Open(o); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q, h
}

// receive returns the kind of the next datagram.
func receive(t testing.TB, q *Queue) Kind {
	t.Helper()
	if err := q.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	slot := make([]byte, BufferSize)
	r := q.NewReader(1)
	r.Slot(0, slot)
	if _, err := r.Recv(engine.Wait{}, 1); err != nil {
		t.Fatal(err)
	}
	n, _ := r.Len(0)
	var m Message
	return m.Parse(slot[:n])
}

func TestOpen(t *testing.T) {
	q, h := open(t, Options{MaxLen: 10, RcvBuf: 1 << 16})
	if q.Num() < firstNum {
		t.Errorf("number %d", q.Num())
	}
	if err := h.Do(func() error {
		var queues []*Queue
		taken := map[uint16]bool{q.Num(): true}
		for range 20 {
			another, err := Open(Options{RcvBuf: 1 << 16})
			if err != nil {
				return err
			}
			queues = append(queues, another)
			if taken[another.Num()] {
				t.Errorf("two queues of the number %d", another.Num())
			}
			taken[another.Num()] = true
		}
		for _, q := range queues {
			if err := q.Close(); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// The kernel answers EPERM for a number that is taken, as it does without rights.
	err := h.Do(func() error {
		c, err := nfnl.Dial(1 << 16)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Request(q.config(Options{}))
	})
	if !errors.Is(err, unix.EBUSY) && !inUse(err, 0) {
		t.Errorf("a queue of another socket: %v", err)
	}
}

func TestRefusalsComeAsDatagrams(t *testing.T) {
	q, _ := open(t, Options{MaxLen: 10, RcvBuf: 1 << 16})
	v, err := q.NewVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(v.Add(12345, Accept, Option{Payload: []byte("abc")}), v.Flush()); err != nil {
		t.Fatal(err)
	}
	if kind := receive(t, q); kind != KindError {
		t.Errorf("a verdict on no packet: a datagram of kind %d", kind)
	}
	if err := q.Configure(Options{MaxLen: 20, RcvBuf: 1 << 16}); err != nil {
		t.Fatal(err)
	}
	v.AddUpTo(1, Accept, Option{})
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	if kind := receive(t, q); kind != KindError {
		t.Errorf("a verdict on no packets: a datagram of kind %d", kind)
	}
}

func TestOpenWithoutRights(t *testing.T) {
	_, h := open(t, Options{RcvBuf: 1 << 16})
	err := h.Do(func() error {
		return lab.WithoutRights(func() error {
			q, err := Open(Options{RcvBuf: 1 << 16})
			if err == nil {
				err = errors.Join(errors.New("opened"), q.Close())
			}
			return err
		})
	})
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%v, want os.ErrPermission and the capability's name", err)
	}
}

func TestAllocations(t *testing.T) {
	race.CannotCount(t)
	b := whole(t, make([]byte, 1400))
	var m Message
	if n := testing.AllocsPerRun(100, func() { m.Parse(b) }); n != 0 {
		t.Errorf("Parse: %v allocations", n)
	}
	q, _ := open(t, Options{MaxLen: 10, RcvBuf: 4096})
	v, err := q.NewVerdicts()
	if err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 1401)
	if n := testing.AllocsPerRun(100, func() {
		for id := range uint32(10) {
			_ = v.Add(id, Repeat, Option{Priority: 1, SetPriority: true, Payload: payload})
		}
		if err := v.Flush(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Add and Flush: %v allocations", n)
	}
}

func BenchmarkParse(b *testing.B) {
	data := whole(b, make([]byte, 1400))
	var m Message
	b.ReportAllocs()
	for b.Loop() {
		m.Parse(data)
	}
}

// BenchmarkVerdicts measures a verdict of a batch of 64. The packets do not exist: the kernel looks for them and answers with an
// error, which costs about as much as letting a packet go.
func BenchmarkVerdicts(b *testing.B) {
	payload := make([]byte, 1401)
	for _, row := range []struct {
		name string
		o    Option
	}{
		{"unchanged", Option{Priority: 1, SetPriority: true}},
		{"changed", Option{Priority: 1, SetPriority: true, Payload: payload}},
	} {
		b.Run(row.name, func(b *testing.B) {
			q, _ := open(b, Options{MaxLen: 10, RcvBuf: 4096})
			v, err := q.NewVerdicts()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			id := uint32(0)
			for b.Loop() {
				if err := v.Add(id, Repeat, row.o); err != nil {
					b.Fatal(err)
				}
				if id++; id%64 == 0 {
					if err := v.Flush(); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
