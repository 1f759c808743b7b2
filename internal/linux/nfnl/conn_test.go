//go:build linux

package nfnl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/race"
)

func TestMain(m *testing.M) { lab.Main(m) }

// dial opens a socket in a host of its own.
func dial(t testing.TB, rcvbuf int) (*Conn, *lab.Host) {
	t.Helper()
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	var c *Conn
	if err := h.Do(func() (err error) { c, err = Dial(rcvbuf); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, h
}

// pair returns a Conn whose messages arrive at another one, instead of at the kernel.
func pair(t testing.TB) (here, there *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*Conn
	for i, fd := range fds {
		SetSendBuffer(fd, 1<<20)
		c, err := NewConn(fd)
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

// The messages of a packet queue serve as an example: bind, and a length for a queue that is not bound.
const (
	msgConfig = 2
	cfgCmd    = 1
	cfgMaxLen = 3
)

func bindMessage(num uint16) *Message {
	return NewMessage(Type(unix.NFNL_SUBSYS_QUEUE, msgConfig), num).Attr(cfgCmd, 1, 0, 0, 0)
}

func TestRequest(t *testing.T) {
	c, h := dial(t, 1<<16)
	if err := c.Request(bindMessage(9)); err != nil {
		t.Fatal(err)
	}
	// The same message a second time, for another socket.
	var other *Conn
	if err := h.Do(func() (err error) { other, err = Dial(1 << 16); return err }); err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	m := bindMessage(9)
	for range 2 {
		if err := other.Request(m); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBUSY) {
			t.Errorf("a queue of another: %v", err)
		}
	}
	if err := other.Request(NewMessage(Type(200, 0), 0)); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("no such subsystem: %v", err)
	}
	unbound := NewMessage(Type(unix.NFNL_SUBSYS_QUEUE, msgConfig), 10).Attr32(cfgMaxLen, 1)
	if err := c.Request(unbound); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a queue that nobody has bound: %v", err)
	}
	// The kernel answers a refused message of Tell too, without the message in the answer.
	if err := c.Tell(unbound); err != nil {
		t.Fatal(err)
	}
	r := c.NewReader(1)
	slot := make([]byte, 4096)
	r.Slot(0, slot)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Recv(engine.Wait{}, 1); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	n, truncated := r.Len(0)
	it := Messages(slot[:n])
	if truncated || !it.Next() || it.Type != unix.NLMSG_ERROR || !errors.Is(it.Errno(), unix.ENODEV) || n != 36 {
		t.Errorf("answer of %d bytes: %.100x", n, slot[:n])
	}
}

func TestRequestWithoutRights(t *testing.T) {
	_, h := dial(t, 1<<16)
	err := h.Do(func() error {
		return lab.WithoutRights(func() error {
			c, err := Dial(1 << 30) // more than is granted
			if err != nil {
				return err
			}
			defer c.Close()
			if size, err := c.ReceiveBuffer(); err != nil || size <= 0 || size >= 1<<30 {
				t.Errorf("receive buffer of %d bytes, %v", size, err)
			}
			return c.Request(bindMessage(1))
		})
	})
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("%v, want os.ErrPermission", err)
	}
}

func TestSocketBuffers(t *testing.T) {
	c, _ := dial(t, 1<<16)
	// The kernel doubles the number, for its own needs (socket(7)).
	if size, err := c.ReceiveBuffer(); err != nil || size != 2<<16 {
		t.Errorf("%d bytes, %v", size, err)
	}
	if err := c.SetReceiveBuffer(1 << 15); err != nil {
		t.Fatal(err)
	}
	if size, err := c.ReceiveBuffer(); err != nil || size != 2<<15 {
		t.Errorf("%d bytes, %v", size, err)
	}
}

func TestDeadlineAndClose(t *testing.T) {
	c, _ := dial(t, 1<<16)
	r := c.NewReader(2)
	r.Slot(0, make([]byte, 100))
	r.Slot(1, make([]byte, 100))
	if n, err := r.Poll(2); n != 0 || err != nil {
		t.Errorf("Poll with nothing there: %d, %v", n, err)
	}
	if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Recv(engine.Wait{}, 2); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Recv after the deadline: %d, %v", n, err)
	}
	if n, err := r.Poll(2); n != 0 || err != nil {
		t.Errorf("Poll looks at no deadline: %d, %v", n, err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	wait := func() {
		n, err := r.Recv(engine.Wait{}, 2)
		for err == nil && n > 0 { // the answer to what ended the wait
			n, err = r.Recv(engine.Wait{}, 2)
		}
		ended <- err
	}
	go wait()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline set while Recv waits: %v", err)
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	go wait()
	w, err := c.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Recv while Close: %v, want os.ErrClosed", err)
	}
	AppendHeader(w.Head(HeaderLen), HeaderLen, Type(3, 1), 0, 0)
	for name, call := range map[string]func() error{
		"Recv":             func() error { _, err := r.Recv(engine.Wait{}, 1); return err },
		"Poll":             func() error { _, err := r.Poll(1); return err },
		"Flush":            w.Flush,
		"NewWriter":        func() error { _, err := c.NewWriter(); return err },
		"SetReadDeadline":  func() error { return c.SetReadDeadline(time.Time{}) },
		"SetReceiveBuffer": func() error { return c.SetReceiveBuffer(1 << 16) },
		"ReceiveBuffer":    func() error { _, err := c.ReceiveBuffer(); return err },
		"Request":          func() error { return c.Request(bindMessage(1)) },
		"Tell":             func() error { return c.Tell(bindMessage(1)) },
		"Close":            c.Close,
	} {
		if err := call(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close: %v, want os.ErrClosed", name, err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Errorf("Flush of nothing: %v", err)
	}
}

func TestReaderFillsSlots(t *testing.T) {
	here, there := pair(t)
	r := here.NewReader(3)
	if r.Cap() != 3 {
		t.Errorf("Cap is %d", r.Cap())
	}
	slots := [][]byte{make([]byte, 8), make([]byte, 4), make([]byte, 8)}
	for i, s := range slots {
		r.Slot(i, s)
	}
	send := func(texts ...string) {
		for _, text := range texts {
			if err := there.Control(func(fd uintptr) {
				if _, err := unix.Write(int(fd), []byte(text)); err != nil {
					t.Error(err)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	send("one", "longer", "3", "the fourth")
	if n, err := r.Recv(engine.Wait{}, 2); n != 2 || err != nil {
		t.Fatalf("Recv(2): %d, %v", n, err)
	}
	for i, want := range []struct {
		text      string
		n         int
		truncated bool
	}{{"one", 3, false}, {"long", 4, true}} {
		n, truncated := r.Len(i)
		if n != want.n || truncated != want.truncated || string(slots[i][:n]) != want.text {
			t.Errorf("slot %d: %d bytes, truncated %t: %q", i, n, truncated, slots[i])
		}
	}
	// Poll does not write past the reader's slots.
	if n, err := r.Poll(100); n != 2 || err != nil || slots[0][0] != '3' {
		t.Errorf("Poll(100): %d, %v, %q", n, err, slots[0])
	}
	if n, truncated := r.Len(0); n != 1 || truncated {
		t.Errorf("slot 0: %d bytes, truncated %t", n, truncated)
	}
	if n, err := r.Recv(engine.Wait{}, 0); n != 0 || err != nil {
		t.Errorf("Recv(0): %d, %v", n, err)
	}
	// One at a time.
	send("longer than", "exactly8", "short")
	for _, want := range []struct {
		text      string
		truncated bool
	}{{"longer t", true}, {"exactly8", false}, {"short", false}} {
		if n, err := r.Recv(engine.Wait{}, 1); n != 1 || err != nil {
			t.Fatalf("Recv(1): %d, %v", n, err)
		}
		if n, truncated := r.Len(0); string(slots[0][:n]) != want.text || truncated != want.truncated {
			t.Errorf("%d bytes, truncated %t: %q, want %q", n, truncated, slots[0], want.text)
		}
	}
	if n, err := r.Poll(1); n != 0 || err != nil {
		t.Errorf("Poll(1) of nothing: %d, %v", n, err)
	}
}

// next receives one message of a pair.
func next(t testing.TB, c *Conn) []byte {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<21)
	r := c.NewReader(1)
	r.Slot(0, b)
	if _, err := r.Recv(engine.Wait{}, 1); err != nil {
		t.Fatal(err)
	}
	n, _ := r.Len(0)
	return b[:n]
}

func TestWriterBytes(t *testing.T) {
	here, there := pair(t)
	w, err := here.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	payloads := [][]byte{[]byte("four"), []byte("fives"), nil, []byte("sixsix"), []byte("sevenen")}
	for round := range 3 { // the memory of a flush is used again by the next
		var want []byte
		for i, p := range payloads {
			head := AppendHeader(nil, HeaderLen+AttrLen+Align(len(p)), Type(3, 1), unix.NLM_F_REQUEST, uint16(i+round))
			head = AppendAttr(head, 10, len(p))
			got := append(w.Head(len(head)), head...)
			if len(got) != len(head) || cap(got) != len(head) {
				t.Errorf("Head gave %d bytes of capacity, want %d", cap(got), len(head))
			}
			w.Payload(p)
			want = append(append(want, head...), p...)
			want = append(want, make([]byte, Align(len(want))-len(want))...)
		}
		if w.size != len(want) {
			t.Errorf("size %d, want %d", w.size, len(want))
		}
		// Payloads are referenced, not copied.
		payloads[0][0]++
		want[HeaderLen+AttrLen]++
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := next(t, there); !bytes.Equal(got, want) {
			t.Errorf("round %d\ngot  %x\nwant %x", round, got, want)
		}
		for _, p := range w.parts[:cap(w.parts)] {
			if p.payload != nil {
				t.Error("the writer keeps a payload after Flush")
			}
		}
	}
}

func TestHeadsGrow(t *testing.T) {
	here, there := pair(t)
	w, err := here.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	payload := []byte("abcdefgh")
	for i := range 300 {
		head := binary.BigEndian.AppendUint64(nil, uint64(i))
		for range 10 {
			head = binary.BigEndian.AppendUint64(head, uint64(i))
		}
		_ = append(w.Head(len(head)), head...)
		want = append(want, head...)
		if i%3 == 0 {
			w.Payload(payload)
			want = append(want, payload...)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := next(t, there); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, or others", len(got), len(want))
	}
}

func TestRoom(t *testing.T) {
	here, _ := pair(t)
	w, err := here.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	if !w.Room(1 << 30) {
		t.Error("an empty writer has no room")
	}
	if size, err := here.buffer(unix.SO_SNDBUF); err != nil || w.limit >= size {
		t.Errorf("the limit %d is past the socket's %d bytes, %v", w.limit, size, err)
	}
	clear(w.Head(100)[:100])
	if !w.Room(w.limit-100) || w.Room(w.limit-99) {
		t.Errorf("room for %d bytes of %d: %t, for one more: %t", w.limit-100, w.limit, w.Room(w.limit-100), w.Room(w.limit-99))
	}
	// One message is three parts at most: header, payload, padding.
	const iovMax = 1024 // UIO_MAXIOV of linux/uio.h
	for w.Room(8) {
		clear(w.Head(4)[:4])
		w.Payload([]byte("x"))
	}
	if n := len(w.parts); n > iovMax || n < iovMax/2 {
		t.Errorf("%d parts", n)
	}
	if err := w.Flush(); err != nil {
		t.Errorf("a full writer: %v", err)
	}
	if !w.Room(1 << 30) {
		t.Error("no room after Flush")
	}
}

// From a bug: the writer assumed at least 64 KiB, whatever the socket had been granted.
func TestRoomOfASmallBuffer(t *testing.T) {
	c, _ := dial(t, 1<<16)
	if err := c.Control(func(fd uintptr) {
		if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 8192); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	w, err := c.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; w.Room(HeaderLen) && n < 10000; n++ {
		AppendHeader(w.Head(HeaderLen), HeaderLen, Type(unix.NFNL_SUBSYS_QUEUE, msgConfig), 0, 0)
	}
	if err := w.Flush(); err != nil {
		t.Errorf("%v", err)
	}
	clear(w.Head(1 << 16)[:1<<16])
	if err := w.Flush(); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("a message larger than the socket's buffer: %v, want EMSGSIZE", err)
	}
	AppendHeader(w.Head(HeaderLen), HeaderLen, Type(unix.NFNL_SUBSYS_QUEUE, msgConfig), 0, 0)
	if err := w.Flush(); err != nil {
		t.Errorf("after a message that was refused: %v", err)
	}
}

func TestAllocations(t *testing.T) {
	race.CannotCount(t)
	here, there := pair(t)
	w, err := here.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	r := there.NewReader(8)
	for i := range r.Cap() {
		r.Slot(i, make([]byte, 4096))
	}
	payload := []byte("abcde")
	if n := testing.AllocsPerRun(100, func() {
		for range 4 {
			AppendHeader(w.Head(HeaderLen), HeaderLen, Type(3, 1), 0, 0)
			w.Payload(payload)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Recv(engine.Wait{}, 8); got != 1 || err != nil {
			t.Fatal(got, err)
		}
		if got, err := r.Poll(8); got != 0 || err != nil {
			t.Fatal(got, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestBusyPoll: a receiver that looks again instead of waiting gets the datagrams that come, and notices everything that ends a
// wait. It never waits here: the time is longer than any test.
func TestBusyPoll(t *testing.T) {
	here, there := pair(t)
	here.SetBusyPoll(time.Hour)
	r := here.NewReader(1)
	slot := make([]byte, 100)
	r.Slot(0, slot)
	type result struct {
		n   int
		err error
	}
	results := make(chan result)
	receive := func(w engine.Wait) {
		go func() {
			n, err := r.Recv(w, 1)
			results <- result{n, err}
		}()
	}
	receive(engine.Wait{})
	w, err := there.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	AppendHeader(w.Head(HeaderLen), HeaderLen, Type(3, 1), 0, 0)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := <-results; got.n != 1 || got.err != nil {
		t.Errorf("a message: %+v", got)
	}
	ended := make(chan struct{})
	receive(engine.Wait{Context: ended})
	close(ended)
	if got := <-results; got.err != engine.ErrInterrupted {
		t.Errorf("the end of the context: %+v", got)
	}
	receive(engine.Wait{})
	if err := here.SetReadDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := <-results; !errors.Is(got.err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline: %+v", got)
	}
	if err := here.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	receive(engine.Wait{})
	here.Drain()
	if got := <-results; got.err != io.EOF {
		t.Errorf("draining: %+v", got)
	}
	here.drained.Store(false)
	receive(engine.Wait{})
	if err := here.Close(); err != nil {
		t.Fatal(err)
	}
	if got := <-results; !errors.Is(got.err, os.ErrClosed) {
		t.Errorf("closing: %+v", got)
	}
	// When the time is over, the receiver waits and is woken.
	here, there = pair(t)
	here.SetBusyPoll(time.Nanosecond)
	r = here.NewReader(1)
	r.Slot(0, slot)
	receive(engine.Wait{})
	if w, err = there.NewWriter(); err != nil {
		t.Fatal(err)
	}
	AppendHeader(w.Head(HeaderLen), HeaderLen, Type(3, 1), 0, 0)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := <-results; got.n != 1 || got.err != nil {
		t.Errorf("a message after the time: %+v", got)
	}
}
