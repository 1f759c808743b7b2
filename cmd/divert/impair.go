package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/impair"
	"github.com/spf13/cobra"
)

// impairFlags are the flags of the commands that impair packets, other than the settings of a rule.
type impairFlags struct {
	handleFlags
	seed       uint64
	dropHeld   bool
	maxPackets int
	maxBytes   int
	json       bool
}

func (f *impairFlags) add(cmd *cobra.Command) {
	f.handleFlags.add(cmd, packetLayers)
	f.addQueue(cmd, usualQueueLength, usualQueueTime, usualQueueSize)
	f.addHang(cmd)
	fl := cmd.Flags()
	fl.Uint64Var(&f.seed, "seed", 0, "decides which packets of a flow are impaired; a random one if not given")
	fl.BoolVar(&f.dropHeld, "drop-held", false, "drop held packets when the run ends, instead of sending them on at once")
	fl.IntVar(&f.maxPackets, "max-packets", 65536, "most packets held at a time; others are dropped and counted")
	fl.IntVar(&f.maxBytes, "max-bytes", 64<<20, "most bytes held at a time")
	fl.BoolVar(&f.json, "json", false, "messages and summary on standard error as JSON")
}

// ruleFlag is a flag that is a setting of a rule.
type ruleFlag struct {
	setting impair.Setting
	rule    *impair.Rule
	text    string
}

// String returns the value as the user gave it.
func (f *ruleFlag) String() string { return f.text }

// Type returns the word that the help shows for the value.
func (f *ruleFlag) Type() string {
	if f.setting.Value == "" {
		return "bool"
	}
	return f.setting.Value
}

// Set sets the field of the rule.
func (f *ruleFlag) Set(s string) error {
	if err := f.setting.Set(f.rule, s); err != nil {
		return err
	}
	f.text = s
	return nil
}

// addRuleFlags adds a flag for each setting of a rule.
func addRuleFlags(cmd *cobra.Command, r *impair.Rule) {
	for _, s := range impair.Settings() {
		f := cmd.Flags().VarPF(&ruleFlag{setting: s, rule: r}, s.Name, "", s.Usage)
		if s.Value == "" {
			f.NoOptDefVal = "true"
		}
	}
}

func newImpair(a *app) *cobra.Command {
	var (
		flags impairFlags
		rule  impair.Rule
		path  string
	)
	cmd := &cobra.Command{
		Use:   "impair [flags] FILTER",
		Short: "Make a network worse: lag, jitter, loss, a limited rate and more, for packets that match",
		Long: `Impair the packets that match a filter: lose, reset, corrupt or duplicate some, limit their rate, delay
and reorder them. Several impairments work together, in the order of the flags below: what is lost takes no part of the
rate, and what has waited for the rate is delayed by the whole lag. A share is 1% or 0.01.

Packets out and in are both impaired, so a round trip takes the lag twice; --direction chooses one. A packet from the host
to itself goes out, and only out.

With the same --seed the same packets of a flow are impaired, whatever other flows do. A flow is one direction between two
addresses and ports.

With --schedule a file says what happens, in phases one after the other with rules each; its rules without a filter take
FILTER. When the run ends, packets that are held go on at once.`,
		Example: `  divert impair --lag 100ms --jitter 10ms udp             a far network
  divert impair --loss 2% --loss-run 4 tcp.DstPort == 443 or tcp.SrcPort == 443
  divert impair --rate 1mbit --queue 200ms true           a slow line for all
  divert impair --reset 0.1% --seed 7 'processId == 4321'
  divert impair --schedule train.yaml ip.DstAddr == 192.0.2.0/24 or ip.SrcAddr == 192.0.2.0/24`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := impairConfig(a, cmd, &flags, &rule, path, args)
			if err != nil {
				return err
			}
			return runImpair(a, cmd, &flags, c, args)
		},
	}
	addRuleFlags(cmd, &rule)
	cmd.Flags().StringVar(&path, "schedule", "", "`file` with phases and rules in YAML, - for standard input")
	flags.add(cmd)
	cmd.Flags().SortFlags = false
	return cmd
}

func newDelay(a *app) *cobra.Command {
	var (
		flags impairFlags
		rule  impair.Rule
	)
	cmd := &cobra.Command{
		Use:   "delay [flags] TIME FILTER",
		Short: "Delay packets that match: divert impair --lag TIME",
		Long: `Delay the packets that match a filter, out and in, by a time; it is short for divert impair --lag TIME,
which can do more.`,
		Example: `  divert delay 100ms udp.DstPort == 53
  divert delay 1.5s tcp`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("delay needs a time, as in 100ms, and a filter")
			}
			lag := lagSetting()
			if err := lag.Set(&rule, args[0]); err != nil {
				return usagef("delay %s: %w", printable(args[0]), err)
			}
			c, err := impairConfig(a, cmd, &flags, &rule, "", args[1:])
			if err != nil {
				return err
			}
			return runImpair(a, cmd, &flags, c, args[1:])
		},
	}
	flags.add(cmd)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return startingWith([]string{"10ms", "100ms", "1s"}, "", begun), cobra.ShellCompDirectiveNoFileComp
		}
		return flags.completeFilter(cmd, args[1:], begun)
	}
	return cmd
}

// lagSetting returns the setting of delay.
func lagSetting() impair.Setting {
	for _, s := range impair.Settings() {
		if s.Name == "lag" {
			return s
		}
	}
	panic("there is no lag")
}

// impairConfig turns the command line into a configuration.
func impairConfig(a *app, cmd *cobra.Command, flags *impairFlags, rule *impair.Rule, path string, args []string) (impair.Config, error) {
	c := impair.Config{
		Seed: flags.seed, Layer: flags.layer(), Strict: flags.strict, DropHeld: flags.dropHeld,
		MaxPackets: flags.maxPackets, MaxBytes: flags.maxBytes,
	}
	if flags.maxPackets < 1 || flags.maxBytes < 1 {
		return c, usagef("--max-packets and --max-bytes must be at least 1")
	}
	if !cmd.Flags().Changed("seed") {
		c.Seed = rand.Uint64N(1 << 53) // JSON readers are exact up to there
	}
	text, _, err := flags.program(args)
	if err == nil {
		text, err = flags.sets.take(text)
	}
	if err != nil {
		return c, err
	}
	if path == "" {
		if err := filterArguments(cmd, args); err != nil {
			return c, err
		}
		if *rule == (impair.Rule{Direction: rule.Direction}) {
			return c, usagef("there is nothing to do: give one of --loss, --lag, --rate and the others, or --schedule")
		}
		rule.Filter = text
		c.Rules = []impair.Rule{*rule}
		return c, nil
	}
	for _, s := range impair.Settings() {
		if cmd.Flags().Changed(s.Name) {
			return c, usagef("--schedule and --%s cannot be combined: the file has the rules", s.Name)
		}
	}
	s, err := readSchedule(a, path)
	if err != nil {
		return c, err
	}
	tests, err := flags.scope.tests(flags.layer(), flags.strict)
	if err != nil {
		return c, err
	}
	for i := range s.Phases {
		for j := range s.Phases[i].Rules {
			r := &s.Phases[i].Rules[j]
			if r.Filter == "" {
				if len(args) == 0 {
					return c, usagef("phase %d, rule %d of %s has no filter: give one for such rules, `true` for all packets", i+1, j+1, printable(path))
				}
				r.Filter = text
				continue
			}
			if r.Filter, err = flags.sets.take(r.Filter); err != nil {
				return c, err
			}
			p, err := flags.compileText(r.Filter)
			if err != nil {
				continue // the run reports the error and its place
			}
			if r.Filter, err = narrow(r.Filter, p, tests); err != nil {
				return c, err
			}
		}
	}
	c.Phases, c.Repeat = s.Phases, s.Repeat
	return c, nil
}

// readSchedule reads a file.
func readSchedule(a *app, path string) (*impair.Schedule, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, impair.MaxFile+1))
	if err != nil {
		return nil, err
	}
	s, err := impair.ParseSchedule(b)
	if err != nil {
		return nil, usagef("%s: %w", printable(path), err)
	}
	return s, nil
}

// runImpair impairs packets until a signal comes, the schedule ends, or the flags say so.
func runImpair(a *app, cmd *cobra.Command, flags *impairFlags, c impair.Config, args []string) error {
	ctx, stop := flags.scope.until(cmd.Context())
	defer stop()
	r := report{app: a, json: flags.json, seed: &c.Seed, scope: &flags.scope}
	c.Open = func(p *filter.Program, opts ...divert.Option) (*divert.Handle, error) {
		if err := flags.follow(ctx, p, &r); err != nil {
			return nil, err
		}
		return flags.open(p, 0, opts...)
	}
	w := &warnings{warn: r.warn}
	c.Report = w.add
	i, err := impair.Open(c)
	if err != nil {
		return impairError(err)
	}
	defer i.Close()
	flags.scope.metrics.tell(metricsAbout{impaired: i.Stats})
	r.begin("impair", fmt.Sprintf("impairing packets with seed %d", c.Seed), filterText(args), i.Handle())
	ctx, cancel := flags.scope.enough(ctx, i.Handle())
	defer cancel()
	err = i.Run(ctx)
	s := i.Stats()
	r.impaired = &s
	r.end(i.Handle())
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// impairError converts errors in rules to errors in the command line.
func impairError(err error) error {
	var (
		rule    *impair.RuleError
		setting *impair.SettingError
		f       *filter.Error
	)
	switch {
	case !errors.As(err, &rule):
		return err
	case rule.InFile() || !errors.As(err, &setting) && !errors.As(err, &f):
		return usageError{hidden{rule}}
	case setting != nil:
		return usagef("--%s: %w", setting.Setting, setting.Err)
	}
	return f
}

// hidden is an error that hides its causes, so that they do not change how it is reported.
type hidden struct{ err error }

// Error returns the error's text.
func (h hidden) Error() string { return h.err.Error() }

// impairCounts are the counters of a run, as JSON.
type impairCounts struct {
	Unimpaired     uint64             `json:"unimpaired"`
	Failed         uint64             `json:"failed"`
	FlowsForgotten uint64             `json:"flows_forgotten"`
	Rules          []impair.RuleStats `json:"rules"`
}

func newImpairCounts(s *impair.Stats) *impairCounts {
	if s == nil {
		return nil
	}
	return &impairCounts{s.Unimpaired, s.Failed, s.FlowsForgotten, s.Rules}
}

// impairText returns the counters of a rule in words, without those that are 0.
func impairText(s *impair.RuleStats) string {
	var b strings.Builder
	b.WriteString(countOf(s.Packets, "packet"))
	for _, c := range [...]struct {
		n    uint64
		text string
	}{
		{s.Lost, "lost"}, {s.Reset, "replaced by resets"}, {s.Corrupted, "corrupted"}, {s.Duplicated, "duplicated"},
		{s.Delayed, "delayed"}, {s.Reordered, "reordered"}, {s.QueueFull, "dropped because the queue of the rate was full"},
		{s.HoldingFull, "dropped because too many were held"}, {s.Ended, "dropped at the end"},
	} {
		if c.n > 0 {
			fmt.Fprintf(&b, ", %d %s", c.n, c.text)
		}
	}
	return b.String()
}
