package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/firewall"
	"github.com/spf13/cobra"
)

func newFirewall(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "firewall",
		Short: "Decide which connections are allowed, by rules in a file",
		Long: `Decide which connections of this host may be, by rules in a file: by process, direction, address, port, name of
the host and time. Each connection is decided once, by its first packet or when a process calls connect, and the
kernel does the rest. The manual has a page about the rules: docs/firewall.md.`,
		Example: `  divert firewall check rules.yaml
  divert firewall run rules.yaml
  divert firewall ask                       in another terminal, for rules with action: ask`,
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []func(*app) *cobra.Command{newFirewallRun, newFirewallCheck, newFirewallAsk, newFirewallGuard} {
		cmd.AddCommand(c(a))
	}
	return cmd
}

// defaultSocket is the socket at which prompts find the firewall.
const defaultSocket = "/run/divert/firewall.sock"

// rulesArgument requires one file of rules.
func rulesArgument(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("%s needs one file of rules; `divert help firewall` describes them", cmd.Name())
	}
	return nil
}

// loadRules reads a file of rules, or standard input. Errors show their place in the file.
func loadRules(a *app, path string) (*firewall.Rules, error) {
	if path == "-" {
		b, err := io.ReadAll(io.LimitReader(a.in, firewall.MaxFile+1))
		if err != nil {
			return nil, err
		}
		r, err := firewall.Parse(b, ".")
		return r, rulesError(err)
	}
	r, err := firewall.Load(path)
	return r, rulesError(err)
}

// rulesFailure is an error in a file of rules.
type rulesFailure struct{ *firewall.FileError }

// Error returns the place, the error there, and the line with a caret under it.
func (e rulesFailure) Error() string {
	if s := e.Snippet(); s != "" {
		return e.FileError.Error() + "\n  " + strings.ReplaceAll(s, "\n", "\n  ")
	}
	return e.FileError.Error()
}

func rulesError(err error) error {
	var wrong *firewall.FileError
	if errors.As(err, &wrong) {
		return rulesFailure{wrong}
	}
	return err
}

func newFirewallCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check RULES",
		Short: "Check a file of rules, and explain its errors",
		Long: `Read a file of rules, and the files that it names, and say what is wrong and where: line, column, and a caret
under the place. - is standard input. It needs no privileges and touches no network.`,
		Example: "  divert firewall check rules.yaml",
		Args:    rulesArgument,
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := loadRules(a, args[0])
			if err != nil {
				return err
			}
			death := "open"
			if r.FailClosed() {
				death = "closed"
			}
			_, err = fmt.Fprintf(a.out, "ok: %s, default %v, on death %s\n", countOf(uint64(r.Len()), "rule"), r.Default(), death)
			return err
		},
	}
}

// firewallFlags are the flags of divert firewall run.
type firewallFlags struct {
	learn    string
	answers  string
	socket   string
	quiet    bool
	json     bool
	priority int16
	engine   choice
	scope    scope
}

func newFirewallRun(a *app) *cobra.Command {
	f := firewallFlags{engine: choice{names: wordsOf(engines)}}
	cmd := &cobra.Command{
		Use:   "run [flags] RULES",
		Short: "Run the firewall",
		Long: `Decide the connections of this host by the rules of a file until a signal comes. One line is printed for each
decision that is to be logged, as the rules say.

The file is read again when it, or a file that it names, has changed, and on SIGHUP: each packet meets the old
rules or the new ones, and connections that were decided by the old ones are decided anew. If the new ones have
an error, the old ones stay.

With --learn connections that no rule is about, and which have the default then, are written to a file as rules
that allow them; it begins with default: deny, and replaces what was in the file.

Rules with action: ask hold the connection until somebody has answered in ` + "`divert firewall ask`" + `, which finds
this command by its socket. The socket is for root and the user that runs the firewall. Answers that hold always
are kept in a file beside the rules, rules.answers.yaml for rules.yaml; --answers names another.

Mind the connection you work over: the rules decide it, too.`,
		Example: `  divert firewall run rules.yaml
  divert firewall run --learn seen.yaml allow-all.yaml
  divert firewall run --json rules.yaml > decisions.jsonl`,
		Args: rulesArgument,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(a, cmd, args[0]) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.learn, "learn", "", "write rules for connections that no rule covers to `file`")
	fl.StringVar(&f.answers, "answers", "", "keep permanent answers in `file`; default: RULES with .answers before its extension")
	fl.StringVar(&f.socket, "socket", defaultSocket, "`path` of the socket for divert firewall ask")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "print no decisions")
	fl.BoolVar(&f.json, "json", false, "decisions, messages and summary as JSON")
	f.scope.addMetrics(cmd)
	fl.Int16Var(&f.priority, "priority", 0, "packets meet handles from the highest priority to the lowest, 30000 to -29999")
	addChoice(cmd, &f.engine, "engine", "engine that decides which packets match")
	return cmd
}

func (f *firewallFlags) run(a *app, cmd *cobra.Command, path string) error {
	if path == "-" {
		return usagef("run reads its rules again when they change: they must be in a file")
	}
	rules, err := loadRules(a, path)
	if err != nil {
		return err
	}
	if f.answers == "" {
		f.answers = firewall.AnswersPath(path)
	}
	answers, err := firewall.LoadAnswers(f.answers)
	if err != nil {
		return fmt.Errorf("the permanent answers: %w", rulesError(err))
	}
	ctx, stop := untilSignal(cmd.Context())
	defer stop()
	again := make(chan os.Signal, 1) // before the firewall reports that it runs
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	if err := f.scope.listenMetrics(); err != nil {
		return err
	}
	defer func() { f.scope.metrics.stop() }()
	r := &report{app: a, json: f.json, start: time.Now(), scope: &f.scope}
	if f.learn != "" {
		if err := new(firewall.Learner).Save(f.learn); err != nil {
			return fmt.Errorf("--learn: %w", err)
		}
	}
	log := newDecisionLog(a, f.json, f.quiet)
	defer log.close()
	w := &warnings{warn: r.warn}
	config := firewall.Config{
		Priority: f.priority, Log: log.add, Warn: w.add, Learner: &firewall.Learner{}, Answers: answers,
		Options: []divert.Option{divert.WithEngine(engines[f.engine.value])},
	}
	prompts, listener, err := f.listen(r)
	if err != nil {
		return err
	}
	if prompts != nil {
		config.Asker = prompts
	}
	fw, err := firewall.Open(rules, config)
	if err != nil {
		if listener != nil {
			_ = listener.Close()
		}
		return openError(err)
	}
	var serving sync.WaitGroup
	defer func() {
		_ = fw.Close() // a second time, unless something has failed
		if prompts != nil {
			_ = listener.Close()
			prompts.Close()
			serving.Wait()
		}
	}()
	if prompts != nil {
		prompts.Attach(fw)
		serving.Go(func() {
			if err := prompts.Serve(listener); err != nil {
				w.add(fmt.Errorf("questions can no longer be asked: %w", err))
			}
		})
	}
	guard, err := f.guard(fw)
	if err != nil {
		return err
	}
	defer guard.end()
	f.scope.metrics.tell(metricsAbout{firewall: fw.Stats})
	r.begin("firewall run", fmt.Sprintf("deciding connections by %s, default %v", countOf(uint64(rules.Len()), "rule"), rules.Default()), path, fw.Handle())
	background, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { f.follow(background, a, fw, guard, path, answers, again, r) })
	if f.learn != "" {
		helpers.Go(func() { f.save(background, config.Learner, w.add) })
	}
	err = fw.Run(ctx)
	cancel()
	helpers.Wait()
	if f.learn != "" {
		err = errors.Join(err, config.Learner.Save(f.learn))
	}
	guard.end()
	if closed := fw.Close(); err == nil {
		err = closed
	}
	log.close()
	f.summary(r, fw.Stats(), log.lost.Load())
	return err
}

// openError words the error of opening a firewall for the user.
func openError(err error) error {
	if errors.Is(err, divert.ErrInvalid) {
		return usageError{err}
	}
	return err
}

// listen makes the socket for prompts. Without one, questions get the default answer.
func (f *firewallFlags) listen(r *report) (*firewall.Prompts, net.Listener, error) {
	l, err := firewall.ListenPrompts(f.socket)
	if errors.Is(err, divert.ErrNotSupported) {
		r.warn(err)
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the socket for divert firewall ask, %s (--socket names another): %w", printable(f.socket), err)
	}
	return &firewall.Prompts{}, l, nil
}

// followTime is the interval between checks for changed files.
const followTime = time.Second

// follow replaces the rules when their files have changed, or on SIGHUP, until the context ends. It reads a changed
// file only after one check has found it unchanged, so never one half written.
func (f *firewallFlags) follow(ctx context.Context, a *app, fw *firewall.Firewall, guard *firewallGuard, path string, answers *firewall.Answers, again <-chan os.Signal, r *report) {
	ticker := time.NewTicker(followTime)
	defer ticker.Stop()
	read, seen := fw.Rules().State(), fw.Rules().State()
	for {
		forced := false
		select {
		case <-ctx.Done():
			return
		case <-again:
			forced = true
		case <-ticker.C:
		}
		switch changed, err := answers.Refresh(); {
		case err != nil:
			r.warn(fmt.Errorf("%w\nthe answers stay as they were", rulesError(err)))
		case changed && !r.json:
			fmt.Fprintf(a.errout, "divert: %s that hold always were read again from %s\n", countOf(uint64(answers.Len()), "answer"), printable(answers.Path()))
		}
		is := fw.Rules().State()
		settled := is == seen
		seen = is
		if !forced && (is == read || !settled) {
			continue
		}
		read = is
		rules, err := loadRules(a, path)
		if err == nil {
			err = fw.SetRules(rules)
		}
		if err == nil {
			err = guard.renew(fw)
		}
		if err != nil {
			r.warn(fmt.Errorf("%w\nthe rules stay as they were", err))
			continue
		}
		read = rules.State()
		seen = read
		if r.json {
			r.line(rulesRead{"rules", path, rules.Len()})
		} else {
			fmt.Fprintf(a.errout, "divert: the rules were read again from %s: %s, default %v\n", printable(path), countOf(uint64(rules.Len()), "rule"), rules.Default())
		}
	}
}

// rulesRead is the JSON line about rules that were read again.
type rulesRead struct {
	Event string `json:"event"` // "rules"
	File  string `json:"file"`
	Rules int    `json:"rules"` // number of rules
}

// save writes the learned rules whenever there are new ones, until the context ends.
func (f *firewallFlags) save(ctx context.Context, l *firewall.Learner, warn func(error)) {
	ticker := time.NewTicker(followTime)
	defer ticker.Stop()
	written := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		n := l.Len()
		if n == written {
			continue
		}
		if err := l.Save(f.learn); err != nil {
			warn(fmt.Errorf("--learn: %w", err))
			continue
		}
		written = n
	}
}

// firewallSummary is the JSON line at the end.
type firewallSummary struct {
	Event      string  `json:"event"` // "firewall-summary"
	Seconds    float64 `json:"seconds"`
	Allowed    uint64  `json:"allowed"` // connections
	Denied     uint64  `json:"denied"`
	Rejected   uint64  `json:"rejected"`
	AtConnect  uint64  `json:"at_connect"` // part of rejected
	Asked      uint64  `json:"asked"`
	Unanswered uint64  `json:"unanswered"` // part of asked
	Unsent     uint64  `json:"unsent"`     // refusals dropped without an answer to the sender, because there were too many
	Reloads    uint64  `json:"reloads"`
	SlowestUS  int64   `json:"slowest_us"` // the longest that a packet waited for a decision, without questions, in microseconds
	LostLines  uint64  `json:"lost_lines"` // decisions that were not printed, because the output was too slow
}

func (f *firewallFlags) summary(r *report, s firewall.Stats, lost uint64) {
	took := time.Since(r.start)
	if r.json {
		r.line(firewallSummary{"firewall-summary", took.Round(time.Microsecond).Seconds(), s.Allowed, s.Denied, s.Rejected, s.AtConnect, s.Asked,
			s.Unanswered, s.Unsent, s.Reloads, s.Slowest.Microseconds(), lost})
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s allowed, %d denied, %d rejected", countOf(s.Allowed, "connection"), s.Denied, s.Rejected)
	for _, c := range [...]struct {
		n    uint64
		text string
	}{
		{s.AtConnect, "of them at connect"}, {s.Asked, "asked about"}, {s.Unanswered, "of those not answered"},
		{s.Unsent, "rejected without a word because there were too many"}, {s.Reloads, "times other rules"}, {lost, "decisions not printed because the output did not keep up"},
	} {
		if c.n > 0 {
			fmt.Fprintf(&b, ", %d %s", c.n, c.text)
		}
	}
	fmt.Fprintf(r.app.errout, "divert: %s in %v\n", &b, took.Round(time.Millisecond))
}

// decisionLog prints decisions without delaying those that make them.
type decisionLog struct {
	lines chan firewall.Event // nil: nothing is printed
	lost  atomic.Uint64
	done  chan struct{}
	once  sync.Once
}

// decisionBacklog is how many decisions may wait to be printed.
const decisionBacklog = 1 << 14

func newDecisionLog(a *app, asJSON, quiet bool) *decisionLog {
	l := &decisionLog{done: make(chan struct{})}
	if quiet {
		close(l.done)
		return l
	}
	l.lines = make(chan firewall.Event, decisionBacklog)
	go func() {
		defer close(l.done)
		w := bufio.NewWriterSize(a.out, bufferSize)
		for e := range l.lines {
			if asJSON {
				if b, err := appendJSONLine(nil, e); err == nil {
					_, _ = w.Write(b) // the error stays, and there is no other place to report it
				}
			} else {
				fmt.Fprintln(w, decisionText(&e))
			}
			if len(l.lines) == 0 {
				_ = w.Flush()
			}
		}
		_ = w.Flush()
	}()
	return l
}

// add queues a decision.
func (l *decisionLog) add(e firewall.Event) {
	if l.lines == nil {
		return
	}
	select {
	case l.lines <- e:
	default:
		l.lost.Add(1)
	}
}

// close prints the queued decisions. The firewall must have ended.
func (l *decisionLog) close() {
	l.once.Do(func() {
		if l.lines != nil {
			close(l.lines)
		}
	})
	<-l.done
}

// decisionText returns a decision as a line.
func decisionText(e *firewall.Event) string {
	return fmt.Sprintf("%s %-6v %s by %s at %s", e.Time.Format("15:04:05.000"), e.Action, connectionText(e), printable(e.Rule), e.At)
}

// connectionText describes a connection in words.
func connectionText(e *firewall.Event) string {
	from, to, way := e.Local, e.Remote, "out"
	if e.Direction == "in" {
		from, to, way = e.Remote, e.Local, "in "
	}
	text := fmt.Sprintf("%s %s %v > %v", way, firewall.ProtocolName(e.Protocol), from, to)
	names := e.Names
	if e.ServerName != "" {
		names = append([]string{e.ServerName}, names...)
	}
	if len(names) > 0 {
		text += " (" + printable(strings.Join(names, ", ")) + ")"
	}
	if e.PID != 0 {
		program := e.Program
		if program == "" {
			program = e.Process
		}
		text += fmt.Sprintf(" %s[%d]", printable(program), e.PID)
		if e.User != "" {
			text += " of " + printable(e.User)
		}
	}
	return text
}
