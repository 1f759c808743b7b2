package diverttest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/opendivert/divert"
)

func init() { expectations = append(expectations, leftovers...) }

// send has the host send datagrams with the numbers from 0 up, and waits until they are in the queue.
func (p *player) send(h *divert.Handle, n int) {
	p.Helper()
	for i := range n {
		p.out(fmt.Sprint(i))
	}
	p.waiting(h, uint64(n))
}

// expectFrom expects the numbers from first up to n to have left the host, in order.
func (p *player) expectFrom(first, n int) {
	p.Helper()
	var want []string
	for i := first; i < n; i++ {
		want = append(want, fmt.Sprint(i))
	}
	p.expectOut(want...)
}

// rounds is the number of times that a row tries a race.
func (p *player) rounds() int {
	if _, ok := p.world.(*fake); ok {
		return 20000
	}
	return 1000
}

// leftovers are the behaviours of an iteration's packets that were received and not handed out, and of its end.
var leftovers = []expectation{
	{"closed in a loop: what was not handed out goes on, and the loop ends", func(p *player) {
		h := p.handle("outbound and udp")
		p.send(h, 10)
		var seen []string
		var last error
		for k, err := range h.Packets(p.Context()) {
			if last = err; err != nil {
				continue
			}
			seen = append(seen, payloadOf(k.Data))
			p.ok(h.Accept(k))
			p.ok(h.Close())
		}
		compare(p.T, "in the loop", seen, []string{"0"})
		p.fails(last, net.ErrClosed, 995)
		p.expectFrom(0, 10)
		p.adds(h, divert.Stats{Matched: 10, Received: 1, Reinjected: 1, Passed: 9})
		_, _, err := h.Recv(make([]byte, 100))
		p.fails(err, net.ErrClosed, 995)
	}},
	{"closed in a loop that is left then", func(p *player) {
		h := p.handle("outbound and udp")
		p.send(h, 10)
		for range h.Packets(p.Context()) {
			p.ok(h.Close())
			break
		}
		p.expectFrom(1, 10)
		n, err := h.RecvBatch(make([]divert.Packet, 10))
		if p.fails(err, net.ErrClosed, 995); n != 0 {
			p.Errorf("%d packets of a closed handle", n)
		}
		p.adds(h, divert.Stats{Matched: 10, Received: 1, Passed: 9})
	}},
	{"what a loop has left waits, and is received in order", func(p *player) {
		h := p.handle("outbound and udp")
		p.send(h, 10)
		for k, err := range h.Packets(p.Context()) {
			p.ok(err)
			p.ok(h.Accept(k))
			break
		}
		p.adds(h, divert.Stats{Matched: 10, Received: 1, Reinjected: 1, Waiting: 9})
		ps := make([]divert.Packet, 4)
		n, err := h.Queue(0).RecvBatch(ps)
		if p.ok(err); n != 4 {
			p.Fatalf("received %d packets, want 4", n)
		}
		_, err = h.AcceptBatch(ps)
		p.ok(err)
		for k, err := range h.Packets(p.Context()) {
			p.ok(err)
			p.ok(h.Accept(k))
			break
		}
		for i := 6; i < 10; i++ {
			k := p.recv(h, fmt.Sprint(i))
			p.ok(h.Accept(&k))
		}
		p.expectFrom(0, 10)
		p.adds(h, divert.Stats{Matched: 10, Received: 10, Reinjected: 10})
	}},
	{"a loop that panics: the rest stays, and goes on at Close", func(p *player) {
		h := p.handle("outbound and udp")
		p.send(h, 10)
		func() {
			defer func() { p.Log("recovered:", recover()) }()
			for range h.Packets(p.Context()) {
				panic("in the loop")
			}
		}()
		k := p.recv(h, "1")
		p.ok(h.Accept(&k))
		p.ok(h.Close())
		p.expectFrom(1, 10)
		p.adds(h, divert.Stats{Matched: 10, Received: 2, Reinjected: 1, Passed: 8})
	}},
	{"a loop that was left, shut down both ways, closed", func(p *player) {
		h := p.handle("outbound and udp")
		p.send(h, 10)
		for range h.Packets(p.Context()) {
			break
		}
		p.ok(h.Shutdown(divert.ShutdownBoth))
		ps := make([]divert.Packet, 1)
		_, err := h.RecvBatch(ps)
		if p.ok(err); payloadOf(ps[0].Data) != "1" {
			p.Errorf("received %.100q", payloadOf(ps[0].Data))
		}
		p.ok(h.Close())
		p.expectFrom(2, 10)
	}},
	{"a loop that was left, on a handle that cannot send, closed", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlags(divert.RecvOnly))
		p.send(h, 10)
		for range h.Packets(p.Context()) {
			break
		}
		p.ok(h.Close())
		p.expectFrom(1, 10)
		p.adds(h, divert.Stats{Matched: 10, Received: 1, Passed: 9})
	}},
	{"a loop over cut packets that was left, closed: they go on whole", func(p *player) {
		h := p.handle("outbound and udp", divert.WithSnapLength(divert.MinSnapLength))
		long := fmt.Sprintf("%0100d", 1)
		p.out("0")
		p.out(long)
		p.waiting(h, 2)
		for k, err := range h.Packets(p.Context()) {
			p.ok(err)
			p.ok(h.Accept(k))
			break
		}
		p.ok(h.Close())
		p.expectOut("0", long)
	}},
	{"copies that a loop has left, closed", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlags(divert.Sniff))
		for i := range 10 {
			p.out(fmt.Sprint(i))
		}
		p.expectFrom(0, 10)
		for _, err := range h.Packets(p.Context()) {
			if err != nil {
				p.fails(err, net.ErrClosed, 995)
				continue
			}
			p.ok(h.Close())
		}
		p.expectOut()
		s, err := h.Stats()
		if p.ok(err); s.Received != 1 || s.Passed == 0 || s.Matched != s.Received+s.Passed {
			p.Errorf("the counters are %+v", s)
		}
	}},
	{"an iterator that nobody stops, closed", func(p *player) {
		h := p.handle("outbound and udp")
		p.send(h, 10)
		next, stop := iter.Pull2(h.Packets(p.Context()))
		defer stop()
		k, err, _ := next()
		p.ok(err)
		p.ok(h.Accept(k))
		p.ok(h.Close())
		p.expectFrom(0, 10)
		_, err, _ = next()
		p.fails(err, net.ErrClosed, 995)
		if _, _, ok := next(); ok {
			p.Error("it goes on")
		}
	}},
	{"closed by another while loops are left: each packet goes on once", func(p *player) {
		for round := range p.rounds() / 100 {
			h := p.handle("outbound and udp")
			for range 5 {
				p.out("x") // in any order
			}
			p.waiting(h, 5)
			var racing sync.WaitGroup
			for range 2 {
				racing.Go(func() {
					for k, err := range h.Packets(p.Context()) {
						if err == nil {
							err = h.Accept(k)
						}
						if err != nil || round%2 == 0 {
							break
						}
					}
				})
			}
			racing.Go(func() { h.Close() })
			racing.Wait()
			p.ok(ignore(h.Close(), net.ErrClosed))
			s, err := h.Stats()
			if p.ok(err); s.Matched != 5 || s.Received+s.Passed != 5 || s.Received-s.Reinjected > 2 {
				p.Fatalf("the counters are %+v", s)
			}
			p.expectOut(slices.Repeat([]string{"x"}, int(s.Passed+s.Reinjected))...)
		}
	}},
	{"a loop whose context ends while a packet comes: the next call receives it", func(p *player) {
		h := p.handle("outbound and udp")
		p.ok(h.SetReadDeadline(time.Now().Add(3 * patience))) // once: setting it again could hide the fault
		ps := make([]divert.Packet, 4)
		for round := range p.rounds() {
			ctx, cancel := context.WithCancel(p.Context())
			payload := fmt.Sprint(round)
			var racing sync.WaitGroup
			racing.Go(cancel)
			racing.Go(func() { p.out(payload) })
			came := false
			for k, err := range h.Packets(ctx) {
				if err != nil {
					p.ok(ignore(err, context.Canceled))
					break
				}
				came = true
				p.ok(h.Accept(k))
			}
			racing.Wait()
			if came {
				continue
			}
			n, err := h.RecvBatch(ps)
			if n != 1 || err != nil || payloadOf(ps[0].Data) != payload {
				p.Fatalf("round %d: received %d packets, %v", round, n, err)
			}
			p.ok(h.Accept(&ps[0]))
		}
		p.ok(h.Close())
		p.forget()
	}},
	{"a loop whose context ends disturbs no other receiver", func(p *player) {
		h := p.handle("outbound and udp")
		total := p.rounds() / 2
		received := make(chan int)
		var receivers sync.WaitGroup
		for range 2 {
			receivers.Go(func() {
				ps := make([]divert.Packet, 1)
				for {
					n, err := h.RecvBatch(ps)
					if err == nil {
						_, err = h.AcceptBatch(ps[:n])
					}
					if err != nil {
						p.okHere(ignore(err, io.EOF))
						return
					}
					received <- n
				}
			})
		}
		go func() {
			receivers.Wait()
			close(received)
		}()
		came := 0
		for range total {
			ctx, cancel := context.WithCancel(p.Context())
			var racing sync.WaitGroup
			racing.Go(cancel)
			for range h.Packets(ctx) {
				came++ // a packet, or the error
			}
			came--
			racing.Wait()
			p.out("x")
			came += <-received
		}
		if came != total {
			p.Errorf("%d of %d packets came", came, total)
		}
		p.ok(h.Shutdown(divert.ShutdownRecv))
		for n := range received {
			p.Errorf("%d packets more", n)
		}
		p.forget()
	}},
	{"nothing to fill, after Close", func(p *player) {
		p.nothingToFill(p.handle("outbound and udp"))
		p.nothingToFill(p.handle("outbound and udp", divert.WithFlags(divert.Sniff)))
	}},
	{"nothing to fill, after Close of a handle with events", func(p *player) {
		p.nothingToFill(p.events("localPort == 4999"))
	}},
	{"receiving from a handle that drops fails at once, in every way", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlags(divert.Drop))
		var looped error
		for _, err := range h.Packets(p.Context()) {
			looped = err
		}
		_, _, recv := h.Recv(make([]byte, 100))
		_, batch := h.RecvBatch(make([]divert.Packet, 4))
		_, queue := h.Queue(0).RecvBatch(make([]divert.Packet, 4))
		for _, err := range []error{looped, recv, batch, queue} {
			p.fails(err, divert.ErrDropOnly, 87)
		}
		p.ok(h.Close())
		_, _, err := h.Recv(make([]byte, 100))
		p.fails(err, net.ErrClosed, 995)
	}},
}

// adds is counts without Abandoned: after a while real engines give up packets that a program does not send on.
func (p *player) adds(h *divert.Handle, want divert.Stats) {
	p.Helper()
	p.until(h, fmt.Sprintf("\n%+v", want), func(s divert.Stats) bool {
		s.Abandoned = 0
		return s == want
	})
}

// nothingToFill checks the result of a receive call with no packets, before and after Close.
func (p *player) nothingToFill(h *divert.Handle) {
	p.Helper()
	_, err := h.RecvBatch(nil)
	p.ok(err)
	p.ok(h.Close())
	_, err = h.RecvBatch(nil)
	p.fails(err, net.ErrClosed, 995)
}

// okHere is ok for goroutines other than the row's.
func (p *player) okHere(err error) {
	p.Helper()
	if err != nil {
		p.Error(err)
	}
}

// ignore returns an error unless it is the expected one.
func ignore(err, expected error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}
