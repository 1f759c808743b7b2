package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/opendivert/divert/firewall"
	"github.com/spf13/cobra"
)

func newFirewallAsk(a *app) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "ask",
		Short: "Answer the firewall's questions about connections, in this terminal",
		Long: `Show the connections that rules of the running firewall ask about (action: ask), and send it the answers: one
of these words, or its first letter, and Enter.

  allow    let the connection be
  deny     drop it silently
  reject   refuse it

With "always" behind it (a! for short) the answer holds for the same program and user, the same host and the
same port, and is kept in a file beside the rules. A connection that nobody answers in time has the default of the
rules. Where several of these commands run, the first answer counts.

It must run as root, or as the user that runs the firewall.`,
		Example: `  divert firewall ask
  divert firewall ask --socket /run/mine/firewall.sock`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := firewall.DialPrompts(socket)
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			defer context.AfterFunc(ctx, func() { _ = p.Close() })()
			if err = p.Greeted(); err == nil {
				err = newAsking(a, p).run()
			}
			if ctx.Err() != nil {
				return nil
			}
			return errors.Join(err, p.Close())
		},
	}
	cmd.Flags().StringVar(&socket, "socket", defaultSocket, "`path` of the firewall's socket")
	return cmd
}

// asking is the dialogue with a person.
type asking struct {
	app    *app
	prompt *firewall.Prompt

	mu    sync.Mutex
	open  []firewall.Question // the oldest first, which is the one shown
	shown uint64              // the id of the one shown
	sent  uint64              // the id of the last question answered here
	ready time.Time           // input typed before this time was meant for another question
}

func newAsking(a *app, p *firewall.Prompt) *asking { return &asking{app: a, prompt: p} }

// run asks until the firewall ends, or until the input has ended and no question is open.
func (s *asking) run() error {
	fmt.Fprintln(s.app.errout, "divert: waiting for questions. Ctrl-C ends.")
	go s.readAnswers()
	for {
		n, err := s.prompt.Next()
		if err == io.EOF {
			fmt.Fprintln(s.app.errout, "divert: the firewall has ended.")
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		if n.Question != nil {
			s.open = append(s.open, *n.Question)
		} else {
			s.withdraw(n.Withdrawn, n.Why)
		}
		s.show()
		s.mu.Unlock()
	}
}

// typingTime is how long answers are rejected after a question was withdrawn: they were meant for that one.
const typingTime = time.Second

// withdraw removes a question.
func (s *asking) withdraw(id uint64, why string) {
	for i, q := range s.open {
		if q.ID == id {
			s.open = append(s.open[:i], s.open[i+1:]...)
			if id == s.shown {
				if id != s.sent {
					s.ready = time.Now().Add(typingTime)
				}
				fmt.Fprintf(s.app.out, "\n  %s\n", printable(why))
			}
			return
		}
	}
}

// show shows the oldest question, unless it is already on display.
func (s *asking) show() {
	if len(s.open) == 0 || s.open[0].ID == s.shown {
		return
	}
	q := &s.open[0]
	s.shown = q.ID
	more := ""
	if n := len(s.open) - 1; n > 0 {
		more = fmt.Sprintf(" (%d more wait)", n)
	}
	fmt.Fprintf(s.app.out, "%s\n  by %s, %v left%s\n", connectionText(&q.Event), printable(q.Rule), time.Until(q.Until).Round(time.Second), more)
	if q.Parent != "" {
		fmt.Fprintf(s.app.out, "  started by %s\n", printable(q.Parent))
	}
	fmt.Fprint(s.app.out, "allow, deny, reject (with ! always)? ")
}

// readAnswers reads answers until the input ends; after that no question is answered here.
func (s *asking) readAnswers() {
	lines := bufio.NewScanner(s.app.in)
	for lines.Scan() {
		s.mu.Lock()
		id, early := s.shown, time.Now().Before(s.ready)
		if len(s.open) == 0 {
			s.mu.Unlock()
			continue
		}
		action, always, err := parseAnswer(lines.Text())
		switch {
		case err == nil && early:
			err = errors.New("that was typed for the previous question; answer again")
		case err == nil:
			s.sent = id
			err = s.prompt.Answer(id, action, always)
		}
		s.mu.Unlock()
		if err != nil {
			fmt.Fprintf(s.app.out, "  %v\nallow, deny, reject (with ! always)? ", err)
		}
	}
}

// parseAnswer parses an answer as people type it.
func parseAnswer(line string) (a firewall.Action, always bool, err error) {
	word := strings.ToLower(strings.TrimSpace(line))
	if before, ok := strings.CutSuffix(word, "always"); ok {
		word, always = strings.TrimSpace(before), true
	} else if before, ok := strings.CutSuffix(word, "!"); ok {
		word, always = strings.TrimSpace(before), true
	}
	for _, a := range []firewall.Action{firewall.Allow, firewall.Deny, firewall.Reject} {
		if word == a.String() || word == a.String()[:1] {
			return a, always, nil
		}
	}
	return 0, false, fmt.Errorf("%q is not an answer", strings.TrimSpace(line))
}
