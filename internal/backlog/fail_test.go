package backlog_test

import (
	"errors"
	"testing"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// TestFail: one reader is told of an error, also one that waits, and what waits comes after it.
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
