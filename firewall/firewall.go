package firewall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
	"github.com/opendivert/divert/process"
)

// Config has the settings of a Firewall. The zero Config will do.
type Config struct {
	// Open opens the handles, by default divert.OpenProgram. It is called with Options as well.
	Open    func(p *filter.Program, opts ...divert.Option) (*divert.Handle, error)
	Options []divert.Option

	// Priority is that of the handle that decides, from divert.LowestPriority+1 on; the handle that reads names is one
	// below it.
	Priority int16

	// Log gets the events to log, one call at a time. Connections wait meanwhile, so it must not block.
	Log func(Event)

	// Asker gets the questions of rules with the action ask. Without one, questions get the answer that the rules give
	// where nobody answers.
	Asker Asker

	// Answers are permanent answers, to which remembered ones are added. Without them answers are remembered until Close.
	Answers *Answers

	// Learner gets the connections that no rule decides.
	Learner *Learner

	// Warn gets errors that do not end the run. It must not wait.
	Warn func(error)
}

// Event is a decision in the log.
type Event struct {
	Time       time.Time      `json:"time"`
	Action     Action         `json:"action"` // Log for rules with that action, which decide nothing
	Rule       string         `json:"rule"`   // the rule's name, "default" if there was none
	At         string         `json:"at"`     // occasion of the decision: "connect", "packet", "hello" of a TLS or QUIC client, "answer" to a question, or "timeout" or "nobody" for an unanswered one
	Direction  string         `json:"direction"`
	Protocol   uint8          `json:"protocol"`
	Local      netip.AddrPort `json:"local"`
	Remote     netip.AddrPort `json:"remote"`
	Names      []string       `json:"names,omitempty"`
	ServerName string         `json:"server_name,omitempty"`
	PID        uint32         `json:"pid,omitempty"`
	Process    string         `json:"process,omitempty"`
	Program    string         `json:"program,omitempty"`
	Parent     string         `json:"parent,omitempty"`
	User       string         `json:"user,omitempty"`
}

// Stats counts the decisions of a Firewall.
type Stats struct {
	Allowed, Denied, Rejected uint64 // connections, and packets that belong to none
	AtConnect                 uint64 // rejected at connect, also counted in Rejected
	Asked                     uint64
	Unanswered                uint64 // questions without an answer in time, or with nobody to ask
	Unsent                    uint64 // refusals not sent to their senders, because there were too many
	Reloads                   uint64 // exchanges of the rules

	Slowest time.Duration // from a packet's capture to its verdict, without questions and hellos
}

// Firewall decides the connections of the network namespace in which it was opened. Open makes one. Its methods may be called
// from several goroutines.
type Firewall struct {
	config  Config
	handle  *divert.Handle
	resolve *divert.Handle // questions and answers of resolvers
	names   *names
	seen    aging[uint32, process.Process] // by id, as last seen; under the mutex

	listening   *listeners
	noProcesses error // reason why processes are unknown; nil if they are known

	mu         sync.Mutex
	rules      *Rules
	connect    *divert.Handle // nil where the kernel cannot, or it was never needed
	noConnect  error
	connectLog chan struct{} // closed when the reader of connect has ended
	generation uint64        // counts reloads, from 1
	timely     string
	flows      aging[flowKey, *flow]
	looks      map[*flow]bool // connections that wait for a hello
	helloBytes int            // bytes held of those
	questions  questions
	answers    limiter
	broadcasts broadcasts
	stats      Stats
	ran        bool
	ended      bool

	parsed packet.Parsed // the receiver's own
}

// Open opens a firewall with rules. Connections are held until Run runs.
//
// It fails with divert.ErrNoProcess if rules need processes and those cannot be known here, and otherwise as divert.Open
// does.
func Open(r *Rules, c Config) (*Firewall, error) {
	if c.Open == nil {
		c.Open = divert.OpenProgram
	}
	if c.Log == nil {
		c.Log = func(Event) {}
	}
	if c.Warn == nil {
		c.Warn = func(error) {}
	}
	if c.Priority == divert.LowestPriority {
		return nil, fmt.Errorf("firewall: %w: the priority %d leaves none below it for the handle that sees names", divert.ErrInvalid, c.Priority)
	}
	f := &Firewall{
		config: c, rules: r, generation: 1, names: newNames(time.Now), timely: r.timely(time.Now()),
		seen: aging[uint32, process.Process]{limit: maxSeen}, flows: aging[flowKey, *flow]{limit: maxFlows}, looks: map[*flow]bool{},
		questions: newQuestions(), answers: limiter{rate: maxAnswers},
	}
	f.names.trust(f.trusted(r))
	if err := f.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("firewall: %w", err), f.Close())
	}
	return f, nil
}

// The least numbers of connections and processes to remember.
const (
	maxFlows = 1 << 16
	maxSeen  = 4096
)

func (f *Firewall) open() (err error) {
	if f.listening, err = openListeners(); err != nil {
		return err
	}
	// Names come first: the name in an answer that passed unseen would stay unknown.
	if f.resolve, err = f.openHandle(resolverFilter, f.config.Priority-1); err != nil {
		return err
	}
	text := packetFilter(f.rules)
	f.handle, err = f.openHandle(text, f.config.Priority, divert.WithProcessID())
	if errors.Is(err, divert.ErrNoProcess) {
		f.noProcesses = err
		if err := f.checkProcesses(f.rules); err != nil {
			return err
		}
		f.handle, err = f.openHandle(text, f.config.Priority)
	}
	if err != nil {
		return err
	}
	return f.setConnect(f.rules)
}

// resolverFilter matches the questions and answers of resolvers. Resolvers on this host are seen on the way out.
const resolverFilter = "outbound and (udp.DstPort == 53 or tcp.DstPort == 53) or udp.SrcPort == 53 or tcp.SrcPort == 53"

// packetFilter matches the packets that rules decide.
func packetFilter(r *Rules) string {
	if r.loopback {
		return "true"
	}
	return "not loopback"
}

// openHandle opens a handle at the layer NETWORK.
func (f *Firewall) openHandle(text string, priority int16, opts ...divert.Option) (*divert.Handle, error) {
	p, err := filter.Compile(text, divert.LayerNetwork, filter.Extended)
	if err != nil {
		return nil, err
	}
	opts = append(opts, divert.WithPriority(priority), divert.WithQueueLength(16384), divert.WithQueueTime(16*time.Second),
		divert.WithQueueSize(32<<20))
	return f.config.Open(p, append(opts, f.config.Options...)...)
}

// checkProcesses fails if rules need processes and those are unknown.
func (f *Firewall) checkProcesses(r *Rules) error {
	if f.noProcesses != nil && r.needsProcesses() {
		return fmt.Errorf("rules are about processes (program, parent, process or user), which cannot be known here: %w", f.noProcesses)
	}
	return nil
}

// trusted returns the resolvers whose answers count.
func (f *Firewall) trusted(r *Rules) []netip.Addr {
	if r.resolvers != nil {
		return r.resolvers
	}
	return systemResolvers()
}

// setConnect refuses connections at connect where the rules allow that. Where the kernel cannot, their packets are
// refused.
func (f *Firewall) setConnect(r *Rules) error {
	p, err := r.compileConnect()
	if err != nil {
		return fmt.Errorf("refusals at connect: %w", err)
	}
	if f.connect == nil {
		if p == nil || f.noConnect != nil {
			return nil
		}
		h, err := f.config.Open(p, append([]divert.Option{divert.WithFlags(divert.RecvOnly), divert.WithPriority(f.config.Priority)}, f.config.Options...)...)
		if err != nil {
			f.noConnect = err
			f.config.Warn(fmt.Errorf("rejected connections are refused by their first packet, not at connect: %w", err))
			return nil
		}
		f.connect = h
		if f.ran {
			f.readConnects()
		}
		return nil
	}
	if p == nil {
		if p, err = filter.Compile("false", divert.LayerSocket, filter.Extended); err != nil {
			return err
		}
	}
	return f.connect.SetProgram(p)
}

// Handle returns the handle that decides, for its counters and its description.
func (f *Firewall) Handle() *divert.Handle { return f.handle }

// Stats returns the counters.
func (f *Firewall) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stats
}

// Rules returns the rules in force.
func (f *Firewall) Rules() *Rules {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rules
}

// SetRules replaces the rules. Each packet meets the old ones or the new ones. Once SetRules has returned, the new ones
// decide every connection with its next packet, even one that was decided before. If it fails the old rules stay in
// force.
func (f *Firewall) SetRules(r *Rules) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.checkProcesses(r); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	old := f.rules
	if old.loopback != r.loopback {
		if err := f.handle.SetFilter(packetFilter(r)); err != nil {
			return fmt.Errorf("firewall: %w", err)
		}
	}
	if err := f.setConnect(r); err != nil {
		return errors.Join(fmt.Errorf("firewall: %w", err), f.handle.SetFilter(packetFilter(old)))
	}
	f.rules = r
	f.stats.Reloads++
	f.names.trust(f.trusted(r))
	f.timely = r.timely(time.Now())
	return f.decideAnew()
}

// decideAnew has all connections decided again. The caller holds the mutex, so that no verdict by the old rules is under
// way.
func (f *Firewall) decideAnew() error {
	f.generation++
	err := f.handle.ForgetFlows()
	if errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("firewall: %w", net.ErrClosed)
	}
	f.flows.each(func(_ flowKey, fl *flow) {
		if fl.question != nil {
			f.reconsider(fl)
		}
	})
	if err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	return nil
}

var errRan = errors.New("firewall: Run runs once")

// Run decides connections until ctx ends, or something fails. It can be called once.
func (f *Firewall) Run(ctx context.Context) error {
	f.mu.Lock()
	if f.ran || f.ended {
		f.mu.Unlock()
		return errRan
	}
	f.ran = true
	f.readConnects()
	f.mu.Unlock()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	running.Go(func() { cancel(f.readNames(ctx)) })
	running.Go(func() { f.tick(ctx) })
	err := f.receive(ctx)
	cancel(err)
	running.Wait()
	if cause := context.Cause(ctx); err == nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		err = cause
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// batch is the number of packets received at a time.
const batch = 64

// receive decides packets until ctx ends.
func (f *Firewall) receive(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = f.handle.Shutdown(divert.ShutdownRecv) }) // fails if it is closed
	defer stop()
	ps := make([]divert.Packet, batch)
	for {
		n, err := f.handle.RecvBatch(ps)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		for i := range ps[:n] {
			f.packet(&ps[i])
		}
		f.mu.Unlock()
	}
}

// readNames reads DNS questions and answers until ctx ends. It has read an answer before the program gets it.
func (f *Firewall) readNames(ctx context.Context) error {
	var parsed packet.Parsed
	stop := context.AfterFunc(ctx, func() { _ = f.resolve.Shutdown(divert.ShutdownRecv) }) // fails if it is closed
	defer stop()
	ps := make([]divert.Packet, batch)
	for {
		n, err := f.resolve.RecvBatch(ps)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range ps[:n] {
			f.names.packet(&ps[i], &parsed)
		}
		if _, err := f.resolve.AcceptBatch(ps[:n]); err != nil {
			f.config.Warn(err)
		}
	}
}

// readConnects begins to read the refused connects. The caller holds the mutex.
func (f *Firewall) readConnects() {
	if f.connect == nil {
		return
	}
	f.connectLog = make(chan struct{})
	go func(h *divert.Handle, done chan struct{}) {
		defer close(done)
		ps := make([]divert.Packet, batch)
		for {
			n, err := h.RecvBatch(ps)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
					f.config.Warn(fmt.Errorf("refused connects are not reported any more: %w", err))
				}
				return
			}
			f.mu.Lock()
			for i := range ps[:n] {
				f.connected(&ps[i].Addr)
			}
			f.mu.Unlock()
		}
	}(f.connect, f.connectLog)
}

// connected takes in a refused connect.
func (f *Firewall) connected(a *divert.Address) {
	d := a.Flow()
	c := Conn{
		Outbound: true, Protocol: d.Protocol, Hello: true, Time: time.Now(), Program: f.program(d.ProcessID),
		Local: netip.AddrPortFrom(d.LocalAddr, d.LocalPort), Remote: netip.AddrPortFrom(d.RemoteAddr, d.RemotePort),
	}
	c.Names = f.names.of(c.Remote.Addr())
	decision := f.rules.Decide(&c)
	decision.Action = Reject // by rules that may be others now
	f.stats.Rejected++
	f.stats.AtConnect++
	if f.config.Learner != nil && decision.Rule == 0 {
		f.config.Learner.add(&c)
	}
	f.log(&c, decision, "connect")
}

// program returns the process with an id, and its parent.
func (f *Firewall) program(id uint32) (p Program) {
	if id == 0 {
		return p
	}
	p.Process = f.process(id)
	if p.Process.Parent != 0 {
		if parent := f.process(p.Process.Parent); !parent.Start.After(p.Process.Start) { // else a later process has the parent's id
			p.Parent = parent
		}
	}
	return p
}

// process returns the process that has an id as it is now, since it may have started another program; if it has ended, as
// last seen; the zero Process if it was never seen.
func (f *Firewall) process(id uint32) process.Process {
	p, err := process.Lookup(id)
	if err == nil {
		f.seen.put(id, p)
		return p
	}
	if !errors.Is(err, process.ErrEnded) {
		return process.Process{}
	}
	p, _ = f.seen.get(id)
	return p
}

// log logs a decision if the rules want it logged.
func (f *Firewall) log(c *Conn, d Decision, at string) {
	if !d.Log && d.Logged == nil {
		return
	}
	for _, n := range d.Logged {
		f.config.Log(f.event(c, Log, n, at))
	}
	if d.Log {
		f.config.Log(f.event(c, d.Action, d.Rule, at))
	}
}

// event returns a connection in the form of the log.
func (f *Firewall) event(c *Conn, a Action, rule int, at string) Event {
	e := Event{
		Time: c.Time, Action: a, Rule: f.rules.Name(rule), At: at, Direction: "in", Protocol: c.Protocol, Local: c.Local, Remote: c.Remote,
		Names: c.Names, ServerName: c.ServerName,
		PID: c.Program.Process.ID, Process: c.Program.Process.Name, Program: c.Program.Process.Executable,
		Parent: c.Program.Parent.Executable, User: c.Program.Process.User,
	}
	if c.Outbound {
		e.Direction = "out"
	}
	return e
}

// tickTime is the interval at which tick looks for changes by time.
const tickTime = 100 * time.Millisecond

// tick expires questions and hellos, and decides anew when rules with a time come into force or lapse, until ctx ends.
func (f *Firewall) tick(ctx context.Context) {
	ticker := time.NewTicker(tickTime)
	defer ticker.Stop()
	resolvers := dependencyOf(resolverFile)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			f.mu.Lock()
			f.expire(now)
			if timely := f.rules.timely(now); timely != f.timely {
				f.timely = timely
				if err := f.decideAnew(); err != nil && !errors.Is(err, net.ErrClosed) {
					f.config.Warn(err)
				}
			}
			if is := dependencyOf(resolverFile); !is.same(resolvers) {
				resolvers = is
				f.names.trust(f.trusted(f.rules))
			}
			f.mu.Unlock()
		}
	}
}

// Close ends the firewall: from then on everything passes. Held packets are dropped; their senders send them again.
func (f *Firewall) Close() error {
	f.mu.Lock()
	f.ended = true
	connect, done := f.connect, f.connectLog
	closes, closesDone := f.questions.closes, f.questions.closesDone
	f.endQuestions()
	f.mu.Unlock()
	var errs []error
	for _, h := range []*divert.Handle{connect, closes, f.handle, f.resolve} {
		if h == nil {
			continue
		}
		if err := h.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for _, done := range []chan struct{}{done, closesDone} {
		if done != nil {
			<-done
		}
	}
	if err := f.listening.close(); err != nil && !errors.Is(err, os.ErrClosed) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
