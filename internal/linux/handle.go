//go:build linux

package linux

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/capture"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/events"
	"github.com/opendivert/divert/internal/linux/flowmap"
	"github.com/opendivert/divert/internal/linux/hang"
	"github.com/opendivert/divert/internal/linux/injector"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/life"
	"github.com/opendivert/divert/internal/linux/links"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/processes"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/registry"
	"github.com/opendivert/divert/internal/linux/review"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/setmap"
	"github.com/opendivert/divert/internal/linux/socketfeed"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// handle is an open handle of a NETWORK layer.
type handle struct {
	cfg    engine.Config
	layer  packet.Layer
	ns     *netns.Namespace
	entry  *rules.Entry
	source capture.Source
	sender *verdict.Sender
	counts tally.Counts

	mu         sync.Mutex    // serialises what changes the handle
	filter     *prog.Program // in force
	terms      terms         // the conditions that rules test before programs
	flows      flows
	entries    *entries // nil where the interpreter decides
	review     review.Review
	nowhere    *queue.Queue    // see rules.ToNowhere; nil until packets are dropped
	hang       *hang.Guard     // nil without
	guard      *rules.Guard    // nil once the handle captures nothing any more
	clones     *codegen.Outlet // of cloneCheck; nil without
	cloneCheck *codegen.CloneCheck
	names      processes.Names
	links      *links.Watch         // nil until a filter names interfaces
	beside     []*prog.Program      // whose interfaces are followed too, see Follow
	processes  *processes.Processes // nil unless the filter in force, or the user, asks for the processes of packets
	life       life.Life
	last       engine.Stats // of a closed handle
	decider    string       // who decides which packets match, and why in words
}

// env returns the part of the handle that a source needs.
func (h *handle) env() capture.Env {
	return capture.Env{
		Config: h.cfg, Layer: h.layer, Counts: &h.counts, Life: &h.life, Sender: h.sender, Review: &h.review,
		Table: &h.flows.table, FlowDropped: h.flowDropped, Matched: h.entry.Matched,
	}
}

// Open opens a handle in the network namespace of the calling thread.
func Open(cfg engine.Config) (engine.Handle, error) {
	layer := cfg.Program.Layer()
	switch layer {
	case packet.LayerSocket, packet.LayerFlow:
		return events.Open(cfg, socketfeed.Open)
	case packet.LayerReflect:
		return events.Open(cfg, registry.Open)
	}
	cfg.Program = cfg.Program.OwnInterfaces() // another handle of the program may be in another namespace
	mode, why, err := decide(cfg.Mode)
	if err != nil {
		return nil, err
	}
	h, err := openIn(cfg, mode, why)
	if err != nil && cfg.Mode == engine.ModeAuto && mode == engine.ModeKernel && isMissing(err) && !errors.Is(err, engine.ErrNoProcess) {
		// Programs load, but no rule can ask them: a kernel without xt_bpf or nft_compat for it.
		return openIn(cfg, engine.ModeInterpret, fmt.Sprintf("interpreter, because rules cannot ask eBPF programs: %v", err))
	}
	if cfg.Mode == engine.ModeAuto && mode == engine.ModeKernel && errors.Is(err, setmap.ErrUnsupported) {
		return openIn(cfg, engine.ModeInterpret, fmt.Sprintf("interpreter, because of %v", err))
	}
	var limit *codegen.LimitError
	if !errors.As(err, &limit) || mode != engine.ModeKernel {
		return h, err
	}
	if cfg.Mode == engine.ModeAuto {
		h, without := openIn(cfg, engine.ModeInterpret, fmt.Sprintf("interpreter, because %v", limit))
		if !errors.Is(without, engine.ErrNoProcess) {
			return h, without
		}
		return nil, fmt.Errorf("%w: %w; and the interpreter does not know processes", engine.ErrNotSupported, limit)
	}
	return nil, fmt.Errorf("%w: %w; without EngineKernel the interpreter decides", engine.ErrNotSupported, limit)
}

// openIn opens a handle in a mode.
func openIn(cfg engine.Config, mode engine.Mode, why string) (engine.Handle, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	h := &handle{cfg: cfg, layer: cfg.Program.Layer(), filter: cfg.Program, ns: ns, decider: why}
	h.review.SetQueueTime(cfg.Limits.Time)
	h.review.SetNames(func(p *packet.Packet) { h.names.AscribeOne(p) })
	if err := h.open(mode); err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// open reserves a place among the handles, prepares where packets will come to, and then installs the rules that lead
// them there: from then on the handle works, and REFLECT handles see it.
func (h *handle) open(mode engine.Mode) error {
	owner := rules.Owner{
		ID: rand.Uint64(), PID: os.Getpid(), Opened: clock.Now(),
		Priority: h.cfg.Priority, Layer: uint8(h.layer), Flags: h.cfg.Flags, Filter: engine.FilterData(h.cfg.Program),
	}
	var err error
	if err := h.checkHang(mode, h.cfg.Program); err != nil {
		return err
	}
	if mode == engine.ModeInterpret {
		err = h.refuseProcess(h.cfg.Program)
	} else {
		h.processes, err = h.processesFor(h.cfg.Program)
	}
	if err != nil {
		return err
	}
	if h.entry, err = rules.Open(h.ns, owner); err != nil {
		return err
	}
	// Until Install no rule leads anywhere, and no packet waits while queues are opened and programs loaded.
	h.sender = verdict.NewSender(verdict.Config{
		Layer: h.layer, Flags: h.cfg.Flags, Counts: &h.counts, Key: h.entry.Key, Tag: uint32(owner.ID) | 1,
		Injector: injector.New(h.ns, h.entry, h.layer),
	})
	if err := h.ns.Do(func() error { return h.prepare(mode) }); err != nil {
		return err
	}
	h.sender.Serve()
	h.terms = h.termsOf(h.cfg.Program)
	if err := h.entry.Install(h.rules()); err != nil {
		return err
	}
	if h.guard, err = h.entry.Guard(h.lost); err != nil || !h.cfg.Inbound {
		return err
	}
	return h.sender.Injector.Ready()
}

// prepare opens where packets will come to, and loads the programs that choose them.
func (h *handle) prepare(mode engine.Mode) (err error) {
	if err := h.followLinks(h.cfg.Program); err != nil {
		return err
	}
	if mode == engine.ModeKernel {
		if h.entries, err = newEntries(&h.cfg, h.entry.Key); err != nil {
			return err
		}
	}
	source, note, err := capture.Open(h.env(), mode, h.decider)
	if err != nil {
		return err
	}
	h.source, h.decider = source, h.decider+note
	if h.entries == nil {
		return nil
	}
	if err := h.checkClones(); err != nil {
		return err
	}
	if err := h.guardHang(); err != nil {
		return err
	}
	h.useNames()
	return h.setEntries(h.cfg.Program, h.processes)
}

// lost makes receivers fail when they have received the waiting packets: no more will come.
func (h *handle) lost() {
	h.life.Enter(life.Lost)
	h.source.Drain()
}

// unguard ends the watch over the rules, before they are taken away.
func (h *handle) unguard() {
	if h.guard != nil {
		h.guard.Close()
		h.guard = nil
	}
}

// rules returns the handle's rules.
func (h *handle) rules() []rules.Rule {
	var rs []rules.Rule
	chains := paths(h.layer, h.cfg.Flags)
	add := func(chain, asked rules.Chain) {
		for _, w := range append(h.flowWays(), h.source.Wants().Ways...) {
			r := rules.Rule{Chain: chain, Program: rules.NoProgram, Action: w.Action, Share: w.Share}
			// The segments count; and programs count what flows' verdicts decide.
			r.Silent = w.Take == codegen.TakeDoubt || w.Take == codegen.TakeFlow
			if h.entries != nil {
				r.Program = h.entries.at[asked].FD(w.Take)
			}
			for _, r.When = range h.cases(w.Take, asked) {
				rs = append(rs, h.guarded(r, w.Take)...)
			}
		}
	}
	for _, chain := range chains {
		add(chain, chain)
		rs = append(rs, h.cutting(chain)...)
	}
	if h.layer == packet.LayerNetwork {
		add(rules.Redirected, chains[0]) // packets that come in, at a later place: the same program
	}
	return rs
}

// cases returns the cases of a way's rules.
func (h *handle) cases(take codegen.Take, asked rules.Chain) (cases []rules.When) {
	terms := h.terms[asked]
	switch {
	case take == codegen.TakeWhole:
		return rules.Cases(rules.SCTP, terms)
	case take == codegen.TakeStreams && h.entries != nil:
		return rules.Cases(rules.TCP, terms) // the program looks closer
	case take == codegen.TakeStreams:
		for _, only := range streamsOf(asked) {
			cases = append(cases, rules.Cases(only, terms)...)
		}
		return cases
	case take == codegen.TakeRest && !h.cfg.Segments:
		return rules.CasesBesides(terms)
	}
	return rules.Cases(rules.AllPackets, terms)
}

// streamsOf returns the packets of TCP that a rule without a program leads to a queue as the stack has them, see
// codegen.TakeStreams.
func streamsOf(c rules.Chain) []rules.Only {
	if c == rules.Inbound || c == rules.InboundFragments {
		return []rules.Only{rules.PlainTCP4, rules.TCP6}
	}
	return []rules.Only{rules.PlainTCP4, rules.PlainTCP6, rules.BigTCP6}
}

// maySend returns why a call that sends cannot go on, in the order of the specification (api.md 8).
func (h *handle) maySend() error {
	switch {
	case h.life.Is(life.Closed):
		return net.ErrClosed
	case h.life.Is(life.NoSend):
		return engine.ErrShutdown
	case h.cfg.Flags&engine.FlagRecvOnly != 0:
		return engine.ErrReceiveOnly
	}
	return nil
}

// Recv implements engine.Handle.
func (h *handle) Recv(w engine.Wait, ps []packet.Packet) (int, error) {
	h.hang.Alive()
	n, err := h.source.Recv(w, ps)
	h.hang.Alive()
	return h.received(ps, n, err)
}

// Lend implements engine.Lender.
func (h *handle) Lend(w engine.Wait, ps []packet.Packet) (n int, lent bool, err error) {
	l, ok := h.source.(engine.Lender)
	if !ok || !h.cfg.InPlace {
		n, err = h.Recv(w, ps)
		return n, false, err
	}
	n, lent, err = l.Lend(w, ps)
	n, err = h.received(ps, n, err)
	return n, lent, err
}

// GiveBack implements engine.Lender.
func (h *handle) GiveBack() {
	if l, ok := h.source.(engine.Lender); ok {
		l.GiveBack()
	}
}

// received counts the packets that a source has returned.
func (h *handle) received(ps []packet.Packet, n int, err error) (int, error) {
	h.counts.Received.Add(uint64(n))
	h.sender.Received(ps[:n])
	h.names.Ascribe(ps[:n])
	if err == io.EOF && h.life.Is(life.Lost) && !h.life.Is(life.NoRecv) {
		err = engine.ErrRulesGone
	}
	return n, err
}

// Wake implements engine.Handle.
func (h *handle) Wake() { h.source.Wake() }

// Return implements engine.Handle.
func (h *handle) Return(ps []packet.Packet) {
	passed := uint64(len(ps))
	if h.cfg.Flags&engine.FlagSniff == 0 {
		passed = h.sender.Pass(ps)
	}
	h.counts.Received.Add(-passed)
	h.counts.Passed.Add(passed)
}

// Drop implements engine.Dropper.
func (h *handle) Drop(ps []packet.Packet) error {
	if h.life.Is(life.Closed) {
		return net.ErrClosed
	}
	return verdict.ClosedError(h.sender.Drop(ps))
}

// Cut implements engine.Cutter.
func (h *handle) Cut() error {
	switch {
	case h.life.Is(life.Closed):
		return net.ErrClosed
	case h.cfg.Flags&engine.FlagSniff != 0:
		source, ok := h.source.(interface{ Cut() })
		if !ok {
			return fmt.Errorf("%w: copies that come through the packet log cannot be cut", engine.ErrNotSupported)
		}
		source.Cut()
		return nil
	case h.cfg.Flags&engine.FlagDrop != 0:
		return fmt.Errorf("%w: dropped packets are not received", engine.ErrNotSupported)
	case !kernel.FinishedSCTP.Has() && h.mayTakeSCTP():
		return fmt.Errorf("%w: this kernel finishes the checksums of SCTP wrongly in queues that cut; a filter for tcp or udp excludes SCTP", engine.ErrNotSupported)
	}
	return h.sender.Cut()
}

// mayTakeSCTP reports whether the rules in force lead SCTP to the handle.
func (h *handle) mayTakeSCTP() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, terms := range h.terms {
		if len(rules.Cases(rules.SCTP, terms)) > 0 {
			return true
		}
	}
	return false
}

// Again implements engine.Cutter.
func (h *handle) Again(ps []packet.Packet) int {
	if h.cfg.Flags&engine.FlagSniff != 0 {
		return len(ps) // copies do not come again
	}
	left := h.sender.Again(ps)
	again := uint64(len(ps) - left)
	h.counts.Received.Add(-again)
	if h.entries == nil {
		h.counts.Matched.Add(-again)
	} else {
		h.counts.Denied.Add(again) // each segment counts
	}
	return left
}

// Queues implements engine.Queues.
func (h *handle) Queues() int { return h.source.Queues() }

// RecvQueue implements engine.Queues. The caller has checked the number.
func (h *handle) RecvQueue(queue int, w engine.Wait, ps []packet.Packet) (int, error) {
	h.hang.Alive()
	n, err := h.source.RecvQueue(queue, w, ps)
	h.hang.Alive()
	return h.received(ps, n, err)
}

// QueueOf implements engine.Queues.
func (h *handle) QueueOf(p *packet.Packet) int { return h.source.QueueOf(p) }

// Send implements engine.Handle.
func (h *handle) Send(ps []packet.Packet) (int, error) { return h.send(ps, false) }

// SendConst implements engine.ConstSender.
func (h *handle) SendConst(ps []packet.Packet) (int, error) {
	if err := h.maySend(); err != nil {
		return 0, err
	}
	return h.sender.SendConst(ps)
}

// Accept implements engine.Handle.
func (h *handle) Accept(ps []packet.Packet) (int, error) { return h.send(ps, true) }

func (h *handle) send(ps []packet.Packet, unchanged bool) (int, error) {
	if err := h.maySend(); err != nil {
		return 0, err
	}
	return h.sender.Send(ps, unchanged)
}

// SetLimits implements engine.Handle.
func (h *handle) SetLimits(l engine.Limits) error {
	if h.life.Is(life.Closed) {
		return net.ErrClosed
	}
	h.review.SetQueueTime(l.Time)
	return h.source.SetLimits(l)
}

// SetFilter implements engine.Handle.
func (h *handle) SetFilter(p *prog.Program) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life.Is(life.Closed) {
		return net.ErrClosed
	}
	if h.life.Is(life.Lost) {
		return engine.ErrRulesGone
	}
	if err := h.checkCounting(p); err != nil {
		return err
	}
	p = p.OwnInterfaces()
	if err := h.followLinks(p); err != nil {
		return err
	}
	defer func() {
		if h.links != nil {
			h.links.Only(append(h.beside[:len(h.beside):len(h.beside)], h.filter)...)
		}
	}()
	if h.entries == nil {
		if err := h.refuseProcess(p); err != nil {
			return err
		}
		if err := h.leadBy(p, func() error { h.source.SetFilter(p); return nil }); err != nil {
			return err
		}
		h.filter = p
		h.tellFilter(p)
		return h.revokeFlows()
	}
	if h.life.Is(life.NoRecv) {
		return nil // nothing is captured any more
	}
	ps, err := h.processesFor(p)
	if err != nil {
		return err
	}
	if err := codegen.KeepsOld(h.setEntries(p, ps)); err != nil {
		if ps != nil && ps != h.processes {
			err = errors.Join(err, ps.Close())
		}
		return err
	}
	h.filter = p
	h.tellFilter(p)
	return errors.Join(h.revokeFlows(), h.keepProcesses(ps))
}

// setEntries makes a filter decide from now on. If it fails, the one before stays in force.
func (h *handle) setEntries(p *prog.Program, ps *processes.Processes) error {
	wants := h.source.Wants()
	set := setting{
		outlet: wants.Copies, processes: processMaps(ps), tell: h.tellsProcess(p),
		sniffs: h.cfg.Flags&engine.FlagSniff != 0, drops: h.cfg.Flags&engine.FlagDrop != 0, counts: wants.Counts,
		segments: h.cfg.Segments, snap: h.cfg.Snap, clones: h.clones, cloneCheck: h.cloneCheck,
	}
	if h.flows.follows {
		set.flows, set.follows, set.flowDrops = h.flows.maps.Load(), true, h.flows.drops.Load()
	}
	if p.CountsFlows() {
		var err error
		if set.flows, err = h.flowMaps(flowmap.Counted); err != nil {
			return err
		}
	}
	set.correlate = set.outlet == nil && (set.sniffs || !set.drops) && (review.AsksForTime(p) || set.tell)
	tells := set.correlate
	if tells || set.outlet == nil && set.sniffs { // the log does not tell the size of segments
		t, err := h.review.Tell()
		if err != nil {
			return err
		}
		if set.times = t.Outlet.Times; tells {
			t.Begin()
		}
	}
	if err := h.leadBy(p, func() error { return h.entries.set(p, set) }); err != nil {
		return err
	}
	_, exact := p.Without(perSegment)
	h.review.SetSecond(p, exact)
	if wants.Queued && !tells && h.review.Tells() {
		kernel.Settle() // then the packets that a program has reported are in the queues
		if last, err := h.source.LastNumbers(); err == nil {
			h.review.StopTelling(last)
		}
	}
	return nil
}

// tellFilter makes REFLECT handles that are opened from now on see the filter, which is in force even if this fails.
func (h *handle) tellFilter(p *prog.Program) { _ = h.entry.SetFilter(engine.FilterData(p)) }

// Shutdown implements engine.Handle.
func (h *handle) Shutdown(how engine.How) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life.Is(life.Closed) {
		return net.ErrClosed
	}
	if how&engine.ShutdownSend != 0 {
		h.life.Enter(life.NoSend)
	}
	if how&engine.ShutdownRecv == 0 || h.life.Is(life.NoRecv) {
		return nil
	}
	if err := h.stop(); err != nil {
		return err
	}
	h.life.Enter(life.NoRecv)
	h.source.Drain()
	return nil
}

// stop makes the handle capture nothing any more.
func (h *handle) stop() error {
	if h.entries == nil {
		h.unguard()
		err := h.entry.Replace(nil)
		kernel.Settle()
		return err
	}
	var unguarded sync.WaitGroup
	unguarded.Go(h.unguard) // which may take as long as settle
	defer unguarded.Wait()
	err := h.entries.clear()
	kernel.Settle()
	return err
}

// Close implements engine.Handle.
func (h *handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.life.Enter(life.Closed) {
		return net.ErrClosed
	}
	h.sender.Stop()
	// Yield comes first, while the rules stand: packets that pass when the rules are gone would overtake those that wait.
	errs := []error{h.source.Yield(), h.stop(), h.source.Finish()}
	var err error
	if h.last, err = h.tally(); err != nil {
		errs = append(errs, err)
	}
	// Waiting packets go on: nobody will receive them now.
	h.last.Passed, h.last.Waiting = h.last.Passed+h.last.Waiting, 0
	return errors.Join(append(errs, h.release())...)
}

// release gives back the resources of an opened, or half opened, handle.
func (h *handle) release() error {
	var errs []error
	h.unguard()
	if h.source != nil {
		errs = append(errs, h.source.Close())
	}
	if h.entry != nil {
		// After the source, when no packet waits for this handle any more, so that the table can go with the last one.
		errs = append(errs, h.entry.Close())
	}
	if h.sender != nil {
		errs = append(errs, h.sender.Close())
	}
	errs = append(errs, h.entries.close(), h.closeFlows(), h.hang.Close())
	if h.nowhere != nil {
		errs = append(errs, h.nowhere.Close())
	}
	if h.clones != nil {
		errs = append(errs, h.clones.Close())
	}
	errs = append(errs, h.review.Close())
	if h.links != nil {
		errs = append(errs, h.links.Close())
	}
	if h.processes != nil {
		errs = append(errs, h.processes.Close()) // after the programs that ask it
	}
	return errors.Join(append(errs, h.ns.Close())...)
}

// Stats implements engine.Handle.
func (h *handle) Stats() (engine.Stats, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life.Is(life.Closed) {
		return h.last, nil
	}
	return h.tally()
}

// tally reads all counters.
func (h *handle) tally() (engine.Stats, error) {
	c := &h.counts
	s := engine.Stats{
		Matched: c.Matched.Load(), Received: c.Received.Load(),
		Dropped: c.Dropped.Load(), DroppedFull: c.Full.Load(), DroppedOld: c.Old.Load(), DroppedLong: c.Long.Load(),
		Passed: c.Passed.Load(), Reinjected: c.Reinjected.Load(), Abandoned: c.Abandoned.Load(),
		Injected: c.Injected.Load(), Failed: c.Failed.Load(), Lost: c.Missing.Load(), Foreign: c.Foreign.Load(),
	}
	if h.entries != nil {
		var err error
		// If others have removed the counter, Matched has only the packets that the other counters know.
		if s.Matched, err = h.entry.Matched(); err != nil && !errors.Is(err, rules.ErrGone) {
			return s, err
		}
	}
	if err := h.source.Tally(&s); err != nil {
		return s, err
	}
	if err := h.tallyFlows(&s); err != nil {
		return s, err
	}
	h.tallyHang(&s)
	if h.clones != nil {
		left, err := h.clones.CloneCount()
		if err != nil {
			return s, err
		}
		s.Matched, s.Passed = s.Matched+left, s.Passed+left // which the rules have not counted
	}
	s.Matched = max(s.Matched, s.Accounted()) // a packet may have come while the counters were read
	return s, nil
}

// Description implements engine.Handle.
func (h *handle) Description() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	text := h.decider
	if h.entries != nil && review.Bounded() {
		text += review.Doubts
	}
	if h.processes != nil {
		text += ", " + h.processes.Description()
	}
	return text
}
