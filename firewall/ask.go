package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
	"github.com/opendivert/divert/process"
)

// Question is a connection that a rule leaves to a person or program. Its packets are held until the answer.
type Question struct {
	ID    uint64    `json:"id"`    // identifies the question in this run
	Until time.Time `json:"until"` // from then on the rules' own default answers it
	Event           // the connection; Action is Ask
}

// Asker puts questions to those who answer them with Firewall.Answer. Its methods must not wait, nor call the Firewall.
type Asker interface {
	// Ask takes a question, and reports whether anybody can answer it.
	Ask(Question) bool
	// Withdraw ends a question that was answered or needs no answer any more; why is the reason, for people.
	Withdraw(id uint64, why string)
}

// Limits of questions and held packets.
const (
	maxQuestions  = 256
	maxHeld       = 16 // packets of one question
	maxRemembered = 4096
)

// question is an open question.
type question struct {
	id       uint64
	key      flowKey
	conn     Conn
	decision Decision
	held     []divert.Packet
	until    time.Time
	flow     *flow
}

// questions holds the open questions, and the answers that hold for more than one connection.
type questions struct {
	last       uint64
	open       map[uint64]*question
	remembered aging[subject, Action]
	closes     *divert.Handle // reports closed sockets; nil until the first question
	closesDone chan struct{}
	noCloses   bool
}

func newQuestions() questions {
	return questions{open: map[uint64]*question{}, remembered: aging[subject, Action]{limit: maxRemembered}}
}

// subject is the scope of a remembered answer: a program's connections to one port of one host.
type subject struct {
	file     process.File
	path     string
	uid      uint32
	known    bool
	outbound bool
	protocol uint8
	host     string // the name in TLS or QUIC, else the address's name that was last asked for, else the address
	port     uint16
}

func subjectOf(c *Conn) subject {
	s := subject{
		file: c.Program.Process.File, path: c.Program.Process.Executable, uid: c.Program.Process.UID, known: c.Program.Known(),
		outbound: c.Outbound, protocol: c.Protocol, host: c.Remote.Addr().String(), port: c.Local.Port(),
	}
	if c.Outbound {
		s.port = c.Remote.Port()
	}
	if c.ServerName != "" {
		s.host = c.ServerName
	} else if len(c.Names) > 0 {
		s.host = c.Names[0]
	}
	return s
}

// ask asks the question about a connection, and holds its packet.
func (f *Firewall) ask(key flowKey, fl *flow, p *divert.Packet, c *Conn, d Decision) {
	f.stats.Asked++
	a, ok := f.questions.remembered.get(subjectOf(c))
	if !ok && f.config.Answers != nil {
		a, ok = f.config.Answers.of(c)
	}
	if ok {
		f.answered(fl, p, c, d, a, "answer")
		return
	}
	q := &question{id: f.questions.last + 1, key: key, conn: *c, decision: d, until: c.Time.Add(f.rules.ask.timeout), flow: fl}
	if f.config.Asker == nil || len(f.questions.open) >= maxQuestions || !f.config.Asker.Ask(f.questionOf(q)) {
		f.stats.Unanswered++
		f.answered(fl, p, c, d, f.rules.ask.action, "nobody")
		return
	}
	f.questions.last = q.id
	f.questions.open[q.id] = q
	q.held = append(q.held, p.Clone())
	fl.question = q
	f.watchCloses()
}

// questionOf returns a question in the form for an Asker.
func (f *Firewall) questionOf(q *question) Question {
	return Question{ID: q.id, Until: q.until, Event: f.event(&q.conn, Ask, q.decision.Rule, "packet")}
}

// Questions returns the open questions, the oldest first.
func (f *Firewall) Questions() (list []Question) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, q := range f.questions.open {
		list = append(list, f.questionOf(q))
	}
	slices.SortFunc(list, func(a, b Question) int { return int(a.ID) - int(b.ID) })
	return list
}

// answered puts the answer to a question in force.
func (f *Firewall) answered(fl *flow, p *divert.Packet, c *Conn, d Decision, a Action, at string) {
	fl.answered, fl.answer = true, a
	d.Action, d.Log = a, true
	f.conclude(fl, p, c, d, at)
}

// ErrNoQuestion means that no open question has the id: its time was over, or another answer came first.
var ErrNoQuestion = errors.New("firewall: no open question has this number")

// Answer answers a question: Allow, Deny or Reject. With remember, the answer holds for all connections of the same
// program and user to the same port of the same host for which rules say ask: permanently if it can be added to
// Config.Answers; otherwise until Close, and Config.Warn gets the reason. Answer fails with ErrNoQuestion.
func (f *Firewall) Answer(id uint64, a Action, remember bool) error {
	if a > Reject {
		return fmt.Errorf("firewall: %w: %v is not an answer; allow, deny and reject are", divert.ErrInvalid, a)
	}
	c, err := f.answerOpen(id, a, remember)
	if err != nil || !remember || f.config.Answers == nil {
		return err
	}
	if err := f.config.Answers.add(&c, a, f.noProcesses != nil); err != nil { // outside the mutex: packets do not wait for the file
		f.config.Warn(fmt.Errorf("a permanent answer: %w", err))
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.questions.remembered.remove(subjectOf(&c))
	return nil
}

// answerOpen answers an open question, and with remember all others with the same subject. It returns the connection.
func (f *Firewall) answerOpen(id uint64, a Action, remember bool) (Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := f.questions.open[id]
	if q == nil {
		return Conn{}, ErrNoQuestion
	}
	if remember {
		f.questions.remembered.put(subjectOf(&q.conn), a)
	}
	f.settle(q, a, "answer", "answered: "+a.String())
	if !remember {
		return q.conn, nil
	}
	for _, other := range f.questions.open {
		if subjectOf(&other.conn) == subjectOf(&q.conn) {
			f.settle(other, a, "answer", "answered: "+a.String())
		}
	}
	return q.conn, nil
}

// settle ends a question with an answer.
func (f *Firewall) settle(q *question, a Action, at, why string) {
	held := f.close(q, why)
	f.parsed.Parse(held[0].Data)
	q.conn.Time = time.Now()
	f.answered(q.flow, &held[0], &q.conn, q.decision, a, at)
	for i := range held[1:] {
		f.alone(&held[1+i], quietly(a))
	}
}

// close ends a question and returns the held packets.
func (f *Firewall) close(q *question, why string) []divert.Packet {
	delete(f.questions.open, q.id)
	q.flow.question = nil
	if f.config.Asker != nil {
		f.config.Asker.Withdraw(q.id, why)
	}
	return q.held
}

// withdraw ends the question about a connection that has ended.
func (f *Firewall) withdraw(fl *flow) {
	q := fl.question
	f.check(f.handle.DropBatch(f.close(q, "the connection was closed")))
}

// wait holds a further packet of a connection in question, or drops it if the sender will repeat it anyway.
func (f *Firewall) wait(fl *flow, p *divert.Packet, tcp packet.TCP) {
	if tcp != nil {
		f.check(f.handle.Drop(p))
		if tcp.Flags()&packet.TCPRst != 0 {
			f.withdraw(fl)
		}
		return
	}
	if q := fl.question; len(q.held) < maxHeld {
		q.held = append(q.held, p.Clone())
		return
	}
	f.check(f.handle.Drop(p))
}

// reconsider decides a connection in question by new rules. It may remain a question.
func (f *Firewall) reconsider(fl *flow) {
	q := fl.question
	q.conn.Time = time.Now()
	d := f.rules.Decide(&q.conn)
	if d.Action == Ask || d.Action == Look {
		q.decision = d
		return
	}
	held := f.close(q, "other rules decide now: "+d.Action.String())
	f.parsed.Parse(held[0].Data)
	f.conclude(fl, &held[0], &q.conn, d, "packet")
	for i := range held[1:] {
		f.alone(&held[1+i], quietly(d.Action))
	}
}

// expireQuestions answers the questions whose time has run out.
func (f *Firewall) expireQuestions(now time.Time) {
	for _, q := range f.questions.open {
		if now.After(q.until) {
			f.stats.Unanswered++
			f.settle(q, f.rules.ask.action, "timeout", "nobody answered in time: "+f.rules.ask.action.String())
		}
	}
}

// watchCloses lets questions end when their socket is closed, where the platform reports that.
func (f *Firewall) watchCloses() {
	if f.questions.closes != nil || f.questions.noCloses {
		return
	}
	p, err := filter.Compile("event == CLOSE and tcp", divert.LayerSocket, filter.Extended)
	if err == nil {
		f.questions.closes, err = f.config.Open(p, append([]divert.Option{
			divert.WithFlags(divert.Sniff | divert.RecvOnly), divert.WithPriority(f.config.Priority)}, f.config.Options...)...)
	}
	if err != nil {
		f.questions.noCloses = true // questions end by an answer, or by time
		return
	}
	f.questions.closesDone = make(chan struct{})
	go func(h *divert.Handle, done chan struct{}) {
		defer close(done)
		ps := make([]divert.Packet, batch)
		for {
			n, err := h.RecvBatch(ps)
			if err != nil {
				return // closed with the firewall; otherwise questions end by an answer or by time
			}
			f.mu.Lock()
			for i := range ps[:n] {
				d := ps[i].Addr.Flow()
				f.closed(flowKey{d.Protocol, netip.AddrPortFrom(d.LocalAddr, d.LocalPort), netip.AddrPortFrom(d.RemoteAddr, d.RemotePort)})
			}
			f.mu.Unlock()
		}
	}(f.questions.closes, f.questions.closesDone)
}

// closed takes in that a socket was closed.
func (f *Firewall) closed(key flowKey) {
	for _, q := range f.questions.open {
		if q.key == key {
			f.withdraw(q.flow)
			return
		}
	}
}

// endQuestions ends all questions without an answer.
func (f *Firewall) endQuestions() {
	for _, q := range f.questions.open {
		f.close(q, "the firewall has ended")
	}
}
