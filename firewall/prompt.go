package firewall

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Prompts is an Asker: it puts questions to programs that connect to it over a socket, such as divert firewall ask, and
// takes the first answer. Each line of the protocol is a JSON object. A prompt receives a greeting, once it is ready for
// questions, and then questions, withdrawals of questions and errors:
//
//	{"ready": true}
//	{"question": {"id": 1, "until": "2026-09-07T12:00:15Z", "direction": "out", "remote": "192.0.2.7:443", …}}
//	{"withdrawn": 1, "why": "answered: allow"}
//	{"error": "…"}
//
// and sends answers:
//
//	{"id": 1, "action": "allow", "remember": true}
//
// A new prompt gets the open questions. One that does not read, or sends anything but answers, is disconnected.
type Prompts struct {
	mu       sync.Mutex
	firewall *Firewall
	prompts  map[*prompt]bool
	closed   bool
	serving  sync.WaitGroup
}

// message is a line to a prompt.
type message struct {
	Ready     bool      `json:"ready,omitempty"`
	Question  *Question `json:"question,omitempty"`
	Withdrawn uint64    `json:"withdrawn,omitempty"`
	Why       string    `json:"why,omitempty"`
	Error     string    `json:"error,omitempty"`
}

// reply is a line from a prompt.
type reply struct {
	ID       uint64 `json:"id"`
	Action   string `json:"action"`
	Remember bool   `json:"remember"`
}

// prompt is a connected program.
type prompt struct {
	conn net.Conn
	out  chan []byte // lines; closed after the last
}

// The limits of one prompt's claims.
const (
	promptBacklog = 1024            // unread lines
	promptTime    = 5 * time.Second // time to read one
	maxReply      = 4096            // bytes of a line
	maxPrompts    = 16
)

// Attach sends the answers of the prompts to a firewall. It must be called once, before Serve.
func (s *Prompts) Attach(f *Firewall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.firewall = f
}

// Ask puts a question to all prompts, and reports whether there is a prompt.
func (s *Prompts) Ask(q Question) bool { return s.tell(message{Question: &q}) > 0 }

// Withdraw tells all prompts that a question needs no answer any more.
func (s *Prompts) Withdraw(id uint64, why string) { s.tell(message{Withdrawn: id, Why: why}) }

// tell sends a message to all prompts and returns their number.
func (s *Prompts) tell(m message) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.prompts {
		if s.send(p, m) {
			n++
		}
	}
	return n
}

// send sends a message to a prompt, and disconnects one that does not read. The caller holds the mutex.
func (s *Prompts) send(p *prompt, m message) bool {
	line, err := json.Marshal(m)
	if err != nil {
		return false
	}
	select {
	case p.out <- append(line, '\n'):
		return true
	default:
		s.remove(p)
		_ = p.conn.Close()
		return false
	}
}

// remove removes a prompt. The caller holds the mutex.
func (s *Prompts) remove(p *prompt) {
	if s.prompts[p] {
		delete(s.prompts, p)
		close(p.out)
	}
}

// Serve serves the prompts that connect to a listener until the listener is closed. The listener decides who may connect:
// ListenPrompts makes one for root.
func (s *Prompts) Serve(l net.Listener) error {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		p := &prompt{conn: c, out: make(chan []byte, promptBacklog)}
		if err := s.enter(p); err != nil {
			_ = c.SetWriteDeadline(time.Now().Add(promptTime))
			_ = json.NewEncoder(c).Encode(message{Error: err.Error()}) // the connection ends in any case
			_ = c.Close()
		}
	}
}

// enter takes in a prompt.
func (s *Prompts) enter(p *prompt) error {
	open := s.firewall.Questions() // locks the firewall's mutex, which comes before this one
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("the firewall has ended")
	}
	if len(s.prompts) >= maxPrompts {
		return fmt.Errorf("there are %d prompts already", maxPrompts)
	}
	if s.prompts == nil {
		s.prompts = map[*prompt]bool{}
	}
	s.prompts[p] = true
	s.serving.Go(func() { s.write(p) })
	s.serving.Go(func() { s.read(p) })
	s.send(p, message{Ready: true})
	for i := range open {
		s.send(p, message{Question: &open[i]})
	}
	return nil
}

// write sends lines to a prompt until the last, or until the prompt does not read.
func (s *Prompts) write(p *prompt) {
	for line := range p.out {
		_ = p.conn.SetWriteDeadline(time.Now().Add(promptTime))
		if _, err := p.conn.Write(line); err != nil {
			break
		}
	}
	s.mu.Lock()
	s.remove(p)
	s.mu.Unlock()
	_ = p.conn.Close()
}

// read takes the answers of a prompt until it disconnects.
func (s *Prompts) read(p *prompt) {
	err := readReplies(p.conn, s.take)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.prompts[p] {
		s.send(p, message{Error: err.Error()})
	}
	s.remove(p) // write sends the remaining lines, and closes
}

// take takes an answer. An answer to a closed question is no error: the prompt has been told.
func (s *Prompts) take(r reply) error {
	a, err := parseAction(r.Action, Allow, Deny, Reject)
	if err != nil {
		return err
	}
	if err := s.firewall.Answer(r.ID, a, r.Remember); err != nil && !errors.Is(err, ErrNoQuestion) {
		return err
	}
	return nil
}

// readReplies calls f for each answer.
func readReplies(r io.Reader, f func(reply) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 512), maxReply)
	for lines.Scan() {
		var answer reply
		if err := json.Unmarshal(lines.Bytes(), &answer); err != nil {
			return fmt.Errorf("this is not an answer: %w", err)
		}
		if err := f(answer); err != nil {
			return err
		}
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("an answer is longer than %d bytes", maxReply)
	}
	return nil // the prompt has disconnected
}

// Close disconnects all prompts and waits for that. Close the firewall and the listener before.
func (s *Prompts) Close() {
	s.mu.Lock()
	s.closed = true
	for p := range s.prompts {
		s.remove(p)
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// Prompt is the other end: the program that asks people. DialPrompts makes one.
type Prompt struct {
	conn  net.Conn
	lines *bufio.Scanner
	mu    sync.Mutex
}

// NewPrompt returns the prompt at the other end of a connection with Prompts.
func NewPrompt(c net.Conn) *Prompt {
	p := &Prompt{conn: c, lines: bufio.NewScanner(c)}
	p.lines.Buffer(make([]byte, 0, 4096), 1<<20)
	return p
}

// Notice is a message to a prompt: a question, or the withdrawal of one.
type Notice struct {
	Question  *Question
	Withdrawn uint64 // the id of the question
	Why       string
}

// Next waits for the firewall's next notice. It fails with io.EOF when the firewall has ended.
func (p *Prompt) Next() (Notice, error) {
	m, err := p.message()
	for err == nil && m.Ready {
		m, err = p.message()
	}
	return Notice{m.Question, m.Withdrawn, m.Why}, err
}

// message waits for a message.
func (p *Prompt) message() (m message, err error) {
	if !p.lines.Scan() {
		if err := p.lines.Err(); err != nil {
			return m, err
		}
		return m, io.EOF
	}
	if err := json.Unmarshal(p.lines.Bytes(), &m); err != nil {
		return message{}, fmt.Errorf("firewall: the other side does not speak the language of prompts: %w", err)
	}
	if m.Error != "" {
		return message{}, fmt.Errorf("the firewall says: %s", m.Error)
	}
	return m, nil
}

// Greeted waits until the firewall has greeted the prompt: from then on it gets questions. Call it before Next.
func (p *Prompt) Greeted() error {
	m, err := p.message()
	if err == nil && !m.Ready {
		err = errors.New("firewall: the other side does not greet")
	}
	return err
}

// Answer answers a question, as Firewall.Answer does. An answer to a closed question is no error.
func (p *Prompt) Answer(id uint64, a Action, remember bool) error {
	line, err := json.Marshal(reply{id, a.String(), remember})
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err = p.conn.Write(append(line, '\n'))
	return err
}

// Close ends the connection.
func (p *Prompt) Close() error { return p.conn.Close() }
