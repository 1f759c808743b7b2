package firewall

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
)

// pipes is a listener whose connections are made in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return nil }

func (p *pipes) dial() net.Conn {
	a, b := net.Pipe()
	p.conns <- a
	return b
}

// served is a firewall that asks over prompts, with one open question.
func served(t testing.TB) (f *Firewall, l *pipes, end func()) {
	t.Helper()
	network := diverttest.New()
	s := &Prompts{}
	r, err := Parse([]byte("default: ask"), "")
	if err != nil {
		t.Fatal(err)
	}
	f, err = Open(r, Config{Open: network.OpenProgram, Asker: s})
	if err != nil {
		t.Fatal(err)
	}
	s.Attach(f)
	l = newPipes()
	done := make(chan error)
	go func() { done <- s.Serve(l) }()
	return f, l, func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		l.Close()
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// open opens a question.
func open(f *Firewall, id uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := conn(true, protocolTCP, host4, peer4)
	key := flowKey{c.Protocol, c.Local, c.Remote}
	fl := &flow{outbound: true, hello: true}
	f.flows.put(key, fl)
	fl.question = &question{id: id, key: key, conn: c, flow: fl, until: time.Now().Add(time.Hour)}
	fl.question.held = []divert.Packet{{Data: []byte{0x45}}}
	f.questions.open[id] = fl.question
}

func TestPrompts(t *testing.T) {
	f, l, end := served(t)
	defer end()
	open(f, 7)
	a, b := NewPrompt(l.dial()), NewPrompt(l.dial())
	for _, p := range []*Prompt{a, b} {
		n, err := p.Next()
		if err != nil || n.Question == nil || n.Question.ID != 7 || n.Question.Remote.String() != peer4 || n.Question.Action != Ask {
			t.Fatalf("%+v, %v", n, err)
		}
	}
	if err := a.Answer(8, Allow, false); err != nil { // of another time
		t.Error(err)
	}
	if err := a.Answer(7, Reject, true); err != nil {
		t.Error(err)
	}
	for _, p := range []*Prompt{a, b} {
		if n, err := p.Next(); err != nil || n.Withdrawn != 7 || n.Why != "answered: reject" {
			t.Errorf("%+v, %v", n, err)
		}
	}
	if err := b.Answer(7, Allow, false); err != nil { // too late
		t.Error(err)
	}
	for _, bad := range []string{"{", `{"id":"x"}`, `{"id":1,"action":"ask"}`, strings.Repeat("x", maxReply+1)} {
		c := l.dial()
		p := NewPrompt(c)
		go func() { _, _ = c.Write([]byte(bad + "\n")) }() // the firewall may disconnect it first
		if n, err := p.Next(); err == nil || !strings.Contains(err.Error(), "the firewall says: ") {
			t.Errorf("%.20q: %+v, %v", bad, n, err)
		}
		if _, err := p.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	open(f, 9)
	f.mu.Lock()
	asked := f.config.Asker.Ask(Question{ID: 9})
	f.mu.Unlock()
	if !asked {
		t.Error("nobody is there")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if n, err := b.Next(); err != nil || n.Question == nil || n.Question.ID != 9 {
		t.Errorf("%+v, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if n, err := b.Next(); err != nil || n.Withdrawn != 9 || n.Why != "the firewall has ended" {
		t.Errorf("%+v, %v", n, err)
	}
}

// A prompt that does not read is disconnected; the others go on.
func TestPromptThatDoesNotRead(t *testing.T) {
	f, l, end := served(t)
	defer end()
	l.dial()
	s := f.config.Asker.(*Prompts)
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		if n := s.tell(message{Withdrawn: 1}); n == 1 {
			break
		}
		if time.Since(begun) > time.Minute {
			t.Fatal("the prompt does not come")
		}
	}
	for range promptBacklog + 3 {
		s.tell(message{Withdrawn: 1})
	}
	if n := s.tell(message{Withdrawn: 1}); n != 0 {
		t.Errorf("%d prompts", n)
	}
}

// Lines from prompts are never trusted to be well-formed.
func FuzzReplies(f *testing.F) {
	f.Add([]byte(`{"id":1,"action":"allow","remember":true}` + "\n" + `{"id":2}`))
	f.Add([]byte("{\n[1]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		err := readReplies(bytes.NewReader(b), func(r reply) error {
			n++
			_, err := json.Marshal(r)
			return err
		})
		if err == nil && n > bytes.Count(b, []byte("\n"))+1 {
			t.Fatalf("%d answers in %q", n, b)
		}
		p := NewPrompt(half{bytes.NewReader(b)})
		for {
			if _, err := p.Next(); err != nil {
				break
			}
		}
	})
}

// half is a connection for reading only.
type half struct{ *bytes.Reader }

func (half) Close() error                     { return nil }
func (half) LocalAddr() net.Addr              { return nil }
func (half) RemoteAddr() net.Addr             { return nil }
func (half) SetDeadline(time.Time) error      { return nil }
func (half) SetReadDeadline(time.Time) error  { return nil }
func (half) SetWriteDeadline(time.Time) error { return nil }
func (half) Write(b []byte) (int, error)      { return len(b), nil }
