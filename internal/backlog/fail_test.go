package backlog_test

import (
	"errors"
	"testing"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// TestFail: one reader is told of an error, also one that waits, and waiting items come after it.
func TestFail(t *testing.T) {
	q := backlog.New(backlog.Config{Limits: engine.Limits{Length: 10, Size: 1 << 16, Time: 1 << 40}, Now: func() int64 { return 1 }, Dropped: func(*backlog.Item, backlog.Reason) {}})
	told := make(chan error)
	ps := make([]packet.Packet, 4)
	go func() {
		_, err := q.Recv(engine.Wait{}, ps)
		told <- err
	}()
	want := errors.New("no memory")
	q.Fail(want)
	if err := <-told; err != want {
		t.Errorf("the reader that waits is told %v", err)
	}
	q.Add([]byte("x"), &packet.Address{Timestamp: 1})
	q.Fail(want)
	if _, err := q.Recv(engine.Wait{}, ps); err != want {
		t.Errorf("the next reader is told %v", err)
	}
	if n, err := q.Recv(engine.Wait{}, ps); n != 1 || err != nil {
		t.Errorf("after the error %d packets, %v", n, err)
	}
}

// TestStop: waiting items come before the end, and the end comes to every reader. Nothing is added behind it.
func TestStop(t *testing.T) {
	q := backlog.New(backlog.Config{Limits: engine.Limits{Length: 10, Size: 1 << 16, Time: 1 << 40}, Now: func() int64 { return 1 }, Dropped: func(*backlog.Item, backlog.Reason) {}})
	ps := make([]packet.Packet, 4)
	q.Add([]byte("x"), &packet.Address{Timestamp: 1})
	want := errors.New("the driver is gone")
	q.Stop(want)
	if q.Add([]byte("y"), &packet.Address{Timestamp: 1}) {
		t.Error("an item was added behind the end")
	}
	if n, err := q.Recv(engine.Wait{}, ps); n != 1 || err != nil {
		t.Errorf("before the end %d packets, %v", n, err)
	}
	for range 2 {
		if _, err := q.Recv(engine.Wait{}, ps); err != want {
			t.Errorf("the end is %v", err)
		}
	}
}

// TestPoll: a call that does not wait takes the waiting items, and leaves an error to those that wait.
func TestPoll(t *testing.T) {
	q := backlog.New(backlog.Config{Limits: engine.Limits{Length: 10, Size: 1 << 16, Time: 5}, Now: func() int64 { return 10 }, Dropped: func(*backlog.Item, backlog.Reason) {}})
	ps := make([]packet.Packet, 4)
	if n := q.Poll(ps); n != 0 {
		t.Errorf("%d items of an empty queue", n)
	}
	q.AddAt(4, []byte("too old"), &packet.Address{Timestamp: 10})
	q.AddAt(10, []byte("x"), &packet.Address{Timestamp: 4}) // it came later than its timestamp says
	want := errors.New("no memory")
	q.Fail(want)
	if n := q.Poll(ps); n != 1 || string(ps[0].Data) != "x" {
		t.Errorf("%d items, the first %q", n, ps[0].Data)
	}
	if _, err := q.Recv(engine.Wait{}, ps); err != want {
		t.Errorf("the next that waits is told %v", err)
	}
}
