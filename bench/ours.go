//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// deal handles the packets of one receive call.
type deal func(h *divert.Handle, ps []divert.Packet) error

// accept sends the packets on unchanged.
func accept(h *divert.Handle, ps []divert.Packet) error {
	_, err := h.AcceptBatch(ps)
	return err
}

// acceptFlow accepts the packets and the rest of their flows.
func acceptFlow(h *divert.Handle, ps []divert.Packet) error {
	return flows(ps, h.AcceptFlow, h.Accept)
}

// dropFlow drops the packets and the rest of their flows.
func dropFlow(h *divert.Handle, ps []divert.Packet) error {
	return flows(ps, h.DropFlow, h.Drop)
}

// flows applies whole to packets with a flow, and alone to the others.
func flows(ps []divert.Packet, whole, alone func(*divert.Packet) error) error {
	for i := range ps {
		err := whole(&ps[i])
		if errors.Is(err, divert.ErrInvalid) {
			err = alone(&ps[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// first returns a filter for the first packets of each flow.
func first(n int) func(traffic) string {
	return func(t traffic) string { return fmt.Sprintf("%s and flow.Packets <= %d", t.way(), n) }
}

// send sends the packets with their bytes, which are unchanged.
func send(h *divert.Handle, ps []divert.Packet) error {
	_, err := h.SendBatch(ps)
	return err
}

// rewrite changes the last byte of each payload and sends the packets; Send recomputes their checksums.
func rewrite(h *divert.Handle, ps []divert.Packet) error {
	var parsed packet.Parsed
	for i := range ps {
		p := &ps[i]
		if !parsed.ParseExact(p.Data) || parsed.PayloadLen == 0 {
			continue
		}
		p.Data[parsed.PayloadOff+parsed.PayloadLen-1]++
		p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false
	}
	return send(h, ps)
}

// bothWays is the filter for packets that are redirected, and their answers.
func bothWays(traffic) string {
	return fmt.Sprintf("tcp and (outbound and ip.DstAddr == %v or inbound and ip.SrcAddr == %v)", aimAddr, realAddr)
}

// replace replaces the address of a packet.
func replace(p *divert.Packet) error {
	if p.Addr.Outbound {
		return p.SetDst(netip.AddrPortFrom(realAddr, p.Dst().Port()))
	}
	return p.SetSrc(netip.AddrPortFrom(aimAddr, p.Src().Port()))
}

// redirect replaces the addresses and sends the packets.
func redirect(h *divert.Handle, ps []divert.Packet) error {
	for i := range ps {
		if err := replace(&ps[i]); err != nil {
			return err
		}
	}
	return send(h, ps)
}

// redirectAnew is redirect for programs that send new packets instead of the received ones.
func redirectAnew(h *divert.Handle, ps []divert.Packet) error {
	for i := range ps {
		p := &ps[i]
		if err := replace(p); err != nil {
			return err
		}
		if !p.Addr.Outbound {
			continue
		}
		if err := h.Drop(p); err != nil {
			return err
		}
		sums := p.Addr
		p.Addr = packet.Address{Outbound: true, IPChecksum: sums.IPChecksum, TCPChecksum: sums.TCPChecksum, UDPChecksum: sums.UDPChecksum}
	}
	return send(h, ps)
}

// count does nothing: the packets are counted anyway.
func count(*divert.Handle, []divert.Packet) error { return nil }

// Ports of the filters that match nothing: no load uses them.
const (
	firstIdlePort = 50000
	loadPort      = 4000
)

// wayOnly is the filter for all packets of a direction.
func wayOnly(t traffic) string { return t.way() }

// ports returns a filter that tests n ports one after the other.
func ports(n int) func(traffic) string {
	return func(t traffic) string {
		tests := make([]string, n)
		for i := range tests {
			tests[i] = fmt.Sprintf("%s.DstPort == %d", t.Protocol, firstIdlePort+2*i)
		}
		return fmt.Sprintf("%s and (%s)", t.way(), strings.Join(tests, " or "))
	}
}

// portSet returns a filter that looks for the port in a set of n.
func portSet(n int) func(traffic) string {
	return func(t traffic) string {
		elements := make([]string, n)
		for i := range elements {
			// Every other port: neighbours would be merged into one range.
			elements[i] = fmt.Sprint(firstSetPort + 2*i)
		}
		return fmt.Sprintf("%s and %s.DstPort in {%s}", t.way(), t.Protocol, strings.Join(elements, ", "))
	}
}

// opensWithPrefixes returns how to open a handle whose filter looks up the destination in a named set of n prefixes,
// without a match. The set includes half of the loads' network, so that the look-up goes to its full depth.
func opensWithPrefixes(n int) func(traffic) (worker, error) {
	return func(t traffic) (worker, error) {
		far := filter.NewAddressSet()
		elements := []filter.Element{filter.Prefix(netip.MustParsePrefix("10.77.0.128/25"))}
		for i := range n - 1 {
			// 64.0.0.0 and above: every fourth /24, since neighbours would be merged into one range.
			a := [4]byte{64 + byte(i>>14), byte(i >> 6), byte(i << 2)}
			elements = append(elements, filter.Prefix(netip.PrefixFrom(netip.AddrFrom4(a), 24)))
		}
		if err := far.Replace(elements); err != nil {
			return nil, err
		}
		asks := func(t traffic) string { return fmt.Sprintf("%s and %s and ip.DstAddr in @far", t.way(), t.Protocol) }
		return oursFor(asks, program{batch: 64, deal: accept}, divert.WithSet("far", far))(t)
	}
}

// firstSetPort leaves room for 10,000 elements above the ports of the loads.
const firstSetPort = 10001

// manyOf returns how to open n handles, each with a filter of one port that matches nothing.
func manyOf(n int) func(traffic) (worker, error) {
	return func(t traffic) (worker, error) {
		var all handleWorkers
		for i := range n {
			filter := func(t traffic) string {
				return fmt.Sprintf("%s and %s.DstPort == %d", t.way(), t.Protocol, firstIdlePort+2*i)
			}
			w, err := oursFor(filter, program{batch: 64, deal: accept})(t)
			if err != nil {
				return nil, errors.Join(err, all.close())
			}
			all = append(all, w)
		}
		return all, nil
	}
}

// handleWorkers are several workers at the same time.
type handleWorkers []worker

func (ws handleWorkers) counts() (handled, missed uint64, err error) {
	for _, w := range ws {
		h, m, one := w.counts()
		handled, missed, err = handled+h, missed+m, errors.Join(err, one)
	}
	return handled, missed, err
}

func (ws handleWorkers) close() error {
	var errs []error
	for _, w := range ws {
		errs = append(errs, w.close())
	}
	return errors.Join(errs...)
}

// program describes how a program uses its handle.
type program struct {
	batch   int // most packets in a receive call
	deal    deal
	readers int  // goroutines that receive, each from its own queue; 0 is 1, from all
	loop    bool // loop over Packets, instead of receive calls; it reads a byte of each packet
	decides bool // deal decides flows
	drops   bool // deal drops
}

// handleWorker is a program that receives from a handle until it is closed.
type handleWorker struct {
	h       *divert.Handle
	handled atomic.Uint64
	seen    uint64 // packets seen by loop
	readers int
	drops   bool  // deal drops
	again   again // for programs that decide many flows
	done    chan error
}

// ours returns how to open a handle that receives all packets of the direction and handles them.
func ours(p program, opts ...divert.Option) func(traffic) (worker, error) {
	return oursFor(wayOnly, p, opts...)
}

// options returns the options that the traffic needs: room for its flows.
func (t traffic) options() []divert.Option {
	if t.Flows == 0 {
		return nil
	}
	return []divert.Option{divert.WithFlowTable(t.Flows)}
}

// oursFor is ours with another filter. Unless the options name an engine it uses the kernel's, and fails if that is
// unavailable.
func oursFor(filter func(traffic) string, p program, opts ...divert.Option) func(traffic) (worker, error) {
	opts = append([]divert.Option{divert.WithEngine(divert.EngineKernel)}, opts...)
	return func(t traffic) (worker, error) {
		h, err := divert.Open(filter(t), slices.Concat(opts, t.options())...)
		if err != nil {
			return nil, err
		}
		w := &handleWorker{h: h, readers: max(p.readers, 1), drops: p.drops}
		if p.decides {
			w.again.came = make([]uint32, t.Flows)
		}
		if h.Flags()&divert.Drop != 0 {
			w.readers = 0 // there is nothing to receive
		}
		w.done = make(chan error, max(w.readers, 1))
		for i := range w.readers {
			receive := h.RecvBatch
			if w.readers > 1 {
				receive = func(ps []divert.Packet) (int, error) { return h.Queue(i % h.Queues()).RecvBatch(ps) }
			}
			run := func() error { return w.run(p, receive) }
			if p.loop {
				run = w.loop
			}
			go func() { w.done <- run() }()
		}
		return w, nil
	}
}

func (w *handleWorker) run(p program, receive func([]divert.Packet) (int, error)) error {
	ps := make([]divert.Packet, p.batch)
	for {
		n, err := receive(ps)
		if err == nil {
			w.again.note(ps[:n])
			w.handled.Add(uint64(n))
			err = p.deal(w.h, ps[:n])
		}
		switch {
		case errors.Is(err, net.ErrClosed), err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// loop reads each packet in place.
func (w *handleWorker) loop() error {
	for p, err := range w.h.Packets(context.Background()) {
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return err
		}
		w.seen += uint64(p.Data[0])
		w.handled.Add(1)
	}
	return nil
}

// counts reads the number of packets that a dropping handle never sees from the kernel's counter.
func (w *handleWorker) counts() (handled, missed uint64, err error) {
	select {
	case err := <-w.done:
		w.done <- err
		return 0, 0, fmt.Errorf("the program has ended: %w", err)
	default:
	}
	s, err := w.h.Stats()
	if w.h.Flags()&divert.Sniff != 0 {
		missed = s.DroppedFull
	}
	handled = w.handled.Load() + s.Dropped + s.FlowAccepted + s.FlowDropped
	if w.drops {
		handled += s.DroppedFull + s.Waiting // before the verdict on their flow
	}
	return handled, missed, err
}

func (w *handleWorker) close() error {
	errs := []error{w.h.Close()}
	for range w.readers {
		errs = append(errs, <-w.done)
	}
	return errors.Join(errs...)
}
