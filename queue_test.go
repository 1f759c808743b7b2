package divert_test

import (
	"context"
	"errors"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
)

func TestQueueThatIsNotThere(t *testing.T) {
	n := diverttest.New()
	h, err := n.Open("udp")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for _, number := range []int{-1, 1} {
		q := h.Queue(number)
		_, batch := q.RecvBatch(make([]divert.Packet, 1))
		_, one := q.RecvContext(t.Context())
		rounds := 0
		var loop error
		for _, err := range q.Packets(t.Context()) {
			rounds, loop = rounds+1, err
		}
		if !errors.Is(batch, divert.ErrInvalid) || !errors.Is(one, divert.ErrInvalid) || !errors.Is(loop, divert.ErrInvalid) || rounds != 1 {
			t.Errorf("queue %d: %v, %v, %v in %d rounds", number, batch, one, loop, rounds)
		}
	}
}

func TestRecvContext(t *testing.T) {
	n := diverttest.New()
	h, err := n.Open("udp")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	query(n, "first")
	query(n, "second")
	first, err := h.RecvContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.Queue(0).RecvContext(t.Context())
	if err != nil || string(first.Payload()) != "first" || string(second.Payload()) != "second" {
		t.Errorf("%q and %q, %v", first.Payload(), second.Payload(), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	if _, err := h.RecvContext(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
	if err := h.Accept(first); err != nil {
		t.Error(err)
	}
	delivered := n.Delivered()
	if len(delivered) != 1 || string(delivered[0].Payload()) != "first" {
		t.Errorf("%d packets delivered", len(delivered))
	}
}
