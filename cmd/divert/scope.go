package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
	"github.com/spf13/cobra"
)

// scope limits a run, besides its filter: interfaces, processes, time, number of packets.
type scope struct {
	interfaces []string
	processes  []string
	lasts      time.Duration // 0: until a signal comes
	count      int           // 0: no limit

	metricsAt string         // address and port, "": nowhere
	metrics   *metricsServer // server of the run, nil: none
}

// addTime adds the flag that ends a run after a time.
func (s *scope) addTime(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&s.lasts, "for", 0, "end after so long, as in 30s or 5m")
}

// addEnd adds the flags that end a run, and the flag for metrics.
func (s *scope) addEnd(cmd *cobra.Command, noun string) {
	s.addTime(cmd)
	cmd.Flags().IntVarP(&s.count, "limit", "c", 0, "end after so many "+noun)
	s.addMetrics(cmd)
}

// addProcess adds the flag that selects processes.
func (s *scope) addProcess(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&s.processes, "process", nil, "only packets or events of the `process`, by id, or by name if it is not a number; may be given several times")
}

// addInterface adds the flag that selects interfaces.
func (s *scope) addInterface(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&s.interfaces, "interface", "i", nil, "only packets of the network interface `name`, by name or index; any: all; may be given several times")
	_ = cmd.RegisterFlagCompletionFunc("interface", completeInterfaces) // the flag exists
}

// check refuses values that make no sense.
func (s *scope) check() error {
	switch {
	case s.count < 0:
		return usagef("--limit %d is negative", s.count)
	case s.lasts < 0:
		return usagef("--for %v is negative", s.lasts)
	}
	return nil
}

// until returns a context that ends at the first SIGINT or SIGTERM, or when the time is up.
func (s *scope) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := untilSignal(ctx)
	if s.lasts == 0 {
		return ctx, stop
	}
	ctx, cancel := context.WithTimeout(ctx, s.lasts)
	return ctx, func() { cancel(); stop() }
}

// limitEvery is how often a run that does not receive the packets it counts checks its limit.
const limitEvery = 20 * time.Millisecond

// enough returns a context that ends with ctx, or when a handle has counted as many packets as the limit. It is for
// runs that do not receive the packets themselves.
func (s *scope) enough(ctx context.Context, h *divert.Handle) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if s.count == 0 {
		return ctx, cancel
	}
	go func() {
		defer cancel()
		tick := time.NewTicker(limitEvery)
		defer tick.Stop()
		for {
			if st, err := h.Stats(); err != nil || st.Matched >= uint64(s.count) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return ctx, cancel
}

// processSet is the named set of the processes that --process names.
const processSet = "divert.process"

// named returns the arguments of --process that are names, not ids.
func (s *scope) named() (names []string) {
	for _, p := range s.processes {
		if _, err := strconv.ParseUint(p, 10, 32); err != nil {
			names = append(names, p)
		}
	}
	return names
}

// tests returns the tests that the flags add to a filter of a layer.
func (s *scope) tests(layer divert.Layer, strict bool) (tests []string, err error) {
	if len(s.interfaces) > 0 {
		if hasEvents(layer) {
			return nil, usagef("--interface applies to packets, but the layer %s has events", word(layer))
		}
		test, err := interfaceTest(s.interfaces, !strict && runtime.GOOS == "linux")
		if err != nil {
			return nil, err
		}
		if test != "" {
			tests = append(tests, test)
		}
	}
	if len(s.processes) == 0 {
		return tests, nil
	}
	var (
		ids  []string
		bare = s.named()
	)
	for _, p := range s.processes {
		if p == "" {
			return nil, usagef("--process needs a process id or a name")
		}
		if !slices.Contains(bare, p) {
			ids = append(ids, p)
		}
	}
	switch {
	case layer == divert.LayerForward:
		return nil, usagef("--process applies to packets of this host, but those of the layer forward belong to others")
	case layer == divert.LayerNetwork && strict:
		return nil, usagef("--process cannot be combined with --strict: in WinDivert packets have no process")
	case len(bare) > 0 && strict:
		return nil, usagef("--process %s cannot be combined with --strict, which has no sets: give the process id", printable(bare[0]))
	}
	test := anyOf("processId == ", ids)
	if len(bare) > 0 {
		if test != "" {
			test += " or "
		}
		test += "processId in @" + processSet
		for _, name := range bare { // the test by name also finds processes that end before the set is updated
			if len(name) > commSize {
				name = name[:commSize]
			}
			if _, err := filter.Process.Eq(name).Compile(layer); err == nil {
				test += " or process == " + filter.QuoteName(name)
			}
		}
	}
	return append(tests, test), nil
}

// commSize is how many bytes of a process's name Linux keeps.
const commSize = packet.ProcessNameSize - 1

// anyOf joins tests of one field for several values.
func anyOf[T any](test string, values []T) string {
	var tests []string
	for _, v := range values {
		tests = append(tests, test+fmt.Sprint(v))
	}
	return strings.Join(tests, " or ")
}

// narrow adds tests to a compiled filter; text is its source. It returns the text of both.
func narrow(text string, p *filter.Program, tests []string) (string, error) {
	if len(tests) == 0 {
		return text, nil
	}
	if strings.HasPrefix(strings.TrimSpace(text), "@") { // an object string
		var err error
		if text, err = p.Format(); err != nil {
			return "", err
		}
	}
	if strings.TrimSpace(text) != "true" {
		tests = append(slices.Clip(tests), text)
	}
	if len(tests) == 1 {
		return tests[0], nil
	}
	return "(" + strings.Join(tests, ") and (") + ")", nil
}

// program compiles the filter of a command, first exactly as given, since errors show that text, then with the tests of
// the flags.
func (f *handleFlags) program(args []string) (text string, p *filter.Program, err error) {
	text = filterText(args)
	if err := f.scope.check(); err != nil {
		return "", nil, err
	}
	if p, err = f.compileText(text); err != nil {
		return "", nil, err
	}
	return f.narrowed(text, p)
}

// narrowed adds the tests of the flags to a filter.
func (f *handleFlags) narrowed(text string, p *filter.Program) (string, *filter.Program, error) {
	if slices.Contains(p.Sets(), processSet) {
		return "", nil, usagef("@%s is the set that --process makes; choose another name", processSet)
	}
	tests, err := f.scope.tests(p.Layer(), f.strict)
	if err != nil || len(tests) == 0 {
		return text, p, err
	}
	if text, err = narrow(text, p, tests); err != nil {
		return "", nil, err
	}
	p, err = f.compileText(text)
	return text, p, err
}

// follow fills the sets of a filter, from files and from names of processes, and keeps them up to date until ctx ends.
// It reports errors to r.
func (f *handleFlags) follow(ctx context.Context, p *filter.Program, r *report) error {
	names := f.scope.named()
	if len(names) > 0 {
		f.sets.own = processSet
	}
	if err := f.sets.follow(ctx, p, r); err != nil || len(names) == 0 {
		return err
	}
	set := p.Set(processSet)
	find := func() error {
		ids, err := processesNamed(names)
		if err != nil {
			return err
		}
		elements := make([]filter.Element, len(ids))
		for i, id := range ids {
			elements[i] = filter.NumberElement(uint64(id))
		}
		return set.Replace(elements)
	}
	if err := find(); err != nil {
		return err
	}
	go func() {
		tick := time.NewTicker(processesEvery)
		defer tick.Stop()
		failed := false // and reported
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			err := find()
			if err != nil && !failed {
				r.warn(fmt.Errorf("the processes with the name are no longer known: %w", err))
			}
			failed = err != nil
		}
	}()
	return nil
}

// processesEvery is how often processes are looked up by name.
const processesEvery = 250 * time.Millisecond
