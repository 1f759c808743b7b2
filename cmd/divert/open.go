package main

import (
	"encoding"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
)

// packetLayers are the layers with packets; the others have events. allLayers are both.
var (
	packetLayers = []divert.Layer{divert.LayerNetwork, divert.LayerForward}
	allLayers    = []divert.Layer{divert.LayerNetwork, divert.LayerForward, divert.LayerFlow, divert.LayerSocket, divert.LayerReflect}
)

// hasEvents reports whether a layer has events, not packets.
func hasEvents(l divert.Layer) bool { return !slices.Contains(packetLayers, l) }

// engines are the values of --engine.
var engines = []divert.Engine{divert.EngineAuto, divert.EngineKernel, divert.EngineInterpreter}

// word returns a value in the spelling of the command line and JSON.
func word(v encoding.TextMarshaler) string {
	text, err := v.MarshalText()
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

// wordsOf returns values in the spelling of the command line.
func wordsOf[T encoding.TextMarshaler](values []T) []string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = word(v)
	}
	return words
}

// choice is a flag whose value is one of a list of names, stored as the index of the name.
type choice struct {
	names []string
	value int
}

// String returns the name chosen.
func (c *choice) String() string { return c.names[c.value] }

// Type returns the word that the help shows for the value.
func (c *choice) Type() string { return "name" }

// Set chooses a name.
func (c *choice) Set(s string) error {
	i := slices.Index(c.names, s)
	if i < 0 {
		return fmt.Errorf("must be one of %s", strings.Join(c.names, ", "))
	}
	c.value = i
	return nil
}

// addChoice adds a flag with a list of names, which the shell completes.
func addChoice(cmd *cobra.Command, c *choice, name, usage string) {
	cmd.Flags().Var(c, name, usage+": "+strings.Join(c.names, ", "))
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(c.names, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
}

// dialectFlags determine how a filter is compiled.
type dialectFlags struct {
	layers []divert.Layer // to choose from
	choice choice         // of one of them
	strict bool
	sets   setFiles
}

// add adds the flags, with the layers that the command supports.
func (f *dialectFlags) add(cmd *cobra.Command, layers []divert.Layer) {
	f.layers = layers
	f.choice.names = wordsOf(layers)
	addChoice(cmd, &f.choice, "layer", "where in the network stack the filter works")
	cmd.Flags().BoolVar(&f.strict, "strict", false, "filter language of WinDivert 2.2 to the letter, without extensions")
	f.sets.add(cmd)
	cmd.ValidArgsFunction = f.completeFilter
}

// layer returns the chosen layer.
func (f *dialectFlags) layer() divert.Layer { return f.layers[f.choice.value] }

func (f *dialectFlags) dialect() filter.Dialect {
	if f.strict {
		return filter.Strict
	}
	return filter.Extended
}

// compile compiles a filter given as arguments of a command; no arguments mean true.
func (f *dialectFlags) compile(args []string) (*filter.Program, error) {
	return f.compileText(filterText(args))
}

func (f *dialectFlags) compileText(text string) (*filter.Program, error) {
	text, err := f.sets.take(text)
	if err != nil {
		return nil, err
	}
	return filter.Compile(text, f.layer(), f.dialect())
}

// filterText joins arguments to a filter.
func filterText(args []string) string {
	if text := strings.Join(args, " "); strings.TrimSpace(text) != "" {
		return text
	}
	return "true"
}

// handleFlags determine how a handle is opened.
type handleFlags struct {
	dialectFlags
	scope       scope
	priority    int16
	fragments   bool
	queueLength int
	queueTime   time.Duration
	queueSize   int
	passOnHang  time.Duration
	dropOnHang  time.Duration
	engine      choice
	driver      string
}

// add adds the flags of a command whose handle is at one of the layers.
func (f *handleFlags) add(cmd *cobra.Command, layers []divert.Layer) {
	f.dialectFlags.add(cmd, layers)
	noun := "packets"
	if slices.ContainsFunc(layers, hasEvents) {
		noun = "packets and events"
	}
	fl := cmd.Flags()
	fl.Int16Var(&f.priority, "priority", 0, noun+" meet handles from the highest priority to the lowest, 30000 to -30000")
	fl.BoolVar(&f.fragments, "fragments", false, "see inbound fragments as they come, not the reassembled datagram")
	f.scope.addInterface(cmd)
	f.scope.addProcess(cmd)
	f.scope.addEnd(cmd, noun)
	f.engine.names = wordsOf(engines)
	addChoice(cmd, &f.engine, "engine", "engine that decides which "+noun+" match")
	addDriver(cmd, &f.driver)
}

// addDriver adds the flag for the path of the driver. Elsewhere than on Windows the flag is hidden, and checkDriver
// refuses it.
func addDriver(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVar(path, "driver", "", "driver `file`, or its folder, in case the driver does not run yet")
	if runtime.GOOS != "windows" {
		_ = cmd.Flags().MarkHidden("driver") // the flag exists
	}
}

// checkDriver refuses the path of a driver on a system without drivers.
func checkDriver(path string) error {
	if path != "" && runtime.GOOS != "windows" {
		return usagef("--driver is for Windows only: here divert needs only the kernel")
	}
	return nil
}

// addQueue adds the limits of the queue, with the command's defaults.
func (f *handleFlags) addQueue(cmd *cobra.Command, length int, age time.Duration, size int) {
	fl := cmd.Flags()
	fl.IntVar(&f.queueLength, "queue-length", length, "packets that may wait for the program, 32 to 16384")
	fl.DurationVar(&f.queueTime, "queue-time", age, "how long a packet may wait, 100ms to 16s")
	fl.IntVar(&f.queueSize, "queue-size", size, "bytes that may wait, 65535 to 33554432")
}

// addHang adds the guard against a hanging program, for commands whose packets wait for them.
func (f *handleFlags) addHang(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.DurationVar(&f.passOnHang, "pass-on-hang", 0, "let packets pass while this program hangs: when one has waited for so long, 100ms to 1h")
	fl.DurationVar(&f.dropOnHang, "drop-on-hang", 0, "drop packets while this program hangs: when one has waited for so long, 100ms to 1h")
}

// The limits of the queue: the defaults of handles (specification: api.md 12), and the greatest values, for commands
// that only watch.
const (
	usualQueueLength, maxQueueLength = 4096, 16384
	usualQueueTime, maxQueueTime     = 2 * time.Second, 16 * time.Second
	usualQueueSize, maxQueueSize     = 4 << 20, 32 << 20
)

// open opens a handle, with the command's own options. Values that Open finds out of range are usage errors.
func (f *handleFlags) open(p *filter.Program, flags divert.Flag, opts ...divert.Option) (*divert.Handle, error) {
	if err := checkDriver(f.driver); err != nil {
		return nil, err
	}
	switch l := f.layer(); {
	case f.fragments && hasEvents(l):
		return nil, usagef("--fragments applies to packets, but the layer %s has events", word(l))
	case f.engine.value != 0 && l == divert.LayerReflect:
		return nil, usagef("--engine applies to filters in the kernel, which the layer reflect does not use")
	case f.passOnHang != 0 && f.dropOnHang != 0:
		return nil, usagef("--pass-on-hang and --drop-on-hang exclude each other")
	case f.fragments:
		flags |= divert.Fragments
	}
	opts = append(opts, divert.WithFlags(flags), divert.WithPriority(f.priority), divert.WithEngine(engines[f.engine.value]),
		divert.WithDriver(f.driver))
	if f.strict {
		opts = append(opts, divert.WithStrict())
	}
	if f.queueLength != 0 || f.queueTime != 0 || f.queueSize != 0 {
		opts = append(opts, divert.WithQueueLength(f.queueLength), divert.WithQueueTime(f.queueTime), divert.WithQueueSize(f.queueSize))
	}
	if f.passOnHang != 0 {
		opts = append(opts, divert.WithPassOnHang(f.passOnHang))
	}
	if f.dropOnHang != 0 {
		opts = append(opts, divert.WithDropOnHang(f.dropOnHang))
	}
	if err := f.scope.listenMetrics(); err != nil {
		return nil, err
	}
	h, err := divert.OpenProgram(p, opts...)
	if err != nil && f.scope.metrics != nil {
		f.scope.metrics.stop()
		f.scope.metrics = nil
	}
	if errors.Is(err, divert.ErrInvalid) {
		var op *divert.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return nil, usageError{err}
	}
	return h, err
}
