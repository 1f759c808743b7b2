package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/capfile"
	"github.com/spf13/cobra"
)

// extcap is how Wireshark captures with other programs (doc/README.extcap of Wireshark): it runs them with flags that
// ask for interfaces, link types and options, check a filter, or capture into a pipe.

// extcapInterfaces are the interfaces that Wireshark lists.
var extcapInterfaces = []struct {
	name, display string
	layer         divert.Layer
}{
	{"divert", "Divert: packets of this host, with their processes", divert.LayerNetwork},
	{"divert-forward", "Divert: packets routed through this host", divert.LayerForward},
}

// wiresharkPlugin adds columns and filter fields for the process of a packet.
//
//go:embed wireshark/divert.lua
var wiresharkPlugin []byte

type extcap struct {
	app *app

	interfaces, dlts, config, capture bool
	version, name, fifo, filter       string
	install                           bool
	folder                            string
	snap                              int
	priority                          int16
	fragments                         bool
	strict                            bool
	engine                            choice
}

// isExtcap reports whether arguments are those that Wireshark passes to a program in one of its extcap folders.
func isExtcap(args []string) bool {
	return len(args) > 0 && (strings.HasPrefix(args[0], "--extcap-") || args[0] == "--capture")
}

func newExtcap(a *app) *cobra.Command {
	e := &extcap{app: a}
	cmd := &cobra.Command{
		Use:   "extcap",
		Short: "Serve Wireshark, which can capture through divert",
		Long: `Answer Wireshark, which captures through programs in its extcap folders. With --install a link to this program
goes to a folder of the user (Wireshark 4.2 looks there; --extcap-folder names another), and a small plugin beside it,
which shows the process of each packet as fields divert.process, divert.pid and divert.path. Then Wireshark lists
"Divert" among its interfaces. The capture filter is one of divert, and what is wrong with one Wireshark shows as divert
does.

Capturing needs the rights that handles need. Wireshark itself should not run as root: give them to this program,
with setcap, and keep it to a group; README.md names them.`,
		Example: `  divert extcap --install            for this user; Wireshark then lists Divert
  divert extcap --install --extcap-folder /usr/lib/x86_64-linux-gnu/wireshark/extcap
  divert extcap --extcap-interfaces  what Wireshark asks first`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("extcap takes flags only, as Wireshark gives them; a filter goes after --extcap-capture-filter")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return e.run(cmd) },
	}
	fl := cmd.Flags()
	fl.BoolVar(&e.install, "install", false, "register this program with this user's Wireshark")
	fl.StringVar(&e.folder, "extcap-folder", "", "with --install: the `folder` that Wireshark looks in (Help, About, Folders); empty: the user's")
	fl.BoolVar(&e.interfaces, "extcap-interfaces", false, "list the interfaces")
	fl.StringVar(&e.version, "extcap-version", "", "the `version` of Wireshark")
	fl.BoolVar(&e.dlts, "extcap-dlts", false, "list the link types of an interface")
	fl.BoolVar(&e.config, "extcap-config", false, "list the options of an interface")
	fl.StringVar(&e.name, "extcap-interface", "", "the `name` of an interface")
	fl.BoolVar(&e.capture, "capture", false, "capture to --fifo")
	fl.StringVar(&e.fifo, "fifo", "", "the `pipe` to write to")
	fl.StringVar(&e.filter, "extcap-capture-filter", "", "the `filter`; without --capture it is only checked")
	fl.IntVar(&e.snap, "snapshot-length", 0, "receive only so many `bytes` of each packet, 64 or more; 0: all")
	fl.Int16Var(&e.priority, "priority", 0, "packets meet handles from the highest priority to the lowest, 30000 to -30000")
	fl.BoolVar(&e.fragments, "fragments", false, "see inbound fragments as they come")
	fl.BoolVar(&e.strict, "strict", false, "filter language of WinDivert 2.2 to the letter")
	e.engine.names = wordsOf(engines)
	fl.Var(&e.engine, "engine", "engine that decides which packets match: auto, kernel, interpreter")
	return cmd
}

func (e *extcap) run(cmd *cobra.Command) error {
	out := e.app.out
	switch {
	case e.install:
		return e.installLink()
	case e.interfaces:
		return e.list(out)
	}
	layer, err := e.layer()
	if err != nil {
		return err
	}
	switch {
	case e.dlts:
		_, err = fmt.Fprintf(out, "dlt {number=%d}{name=RAW}{display=Raw IP}\n", capfile.LinkTypeRaw)
	case e.config:
		err = e.options(out, layer)
	case e.capture:
		err = e.write(cmd, layer)
	case cmd.Flags().Changed("extcap-capture-filter"):
		err = e.check(out, layer)
	default:
		err = usagef("extcap needs one of --extcap-interfaces, --extcap-dlts, --extcap-config, --extcap-capture-filter, --capture and --install")
	}
	return err
}

func (e *extcap) list(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "extcap {version=%s}{display=Divert}\n", buildVersion())
	for _, i := range extcapInterfaces {
		fmt.Fprintf(&b, "interface {value=%s}{display=%s}\n", i.name, i.display)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (e *extcap) layer() (divert.Layer, error) {
	var names []string
	for _, i := range extcapInterfaces {
		if i.name == e.name {
			return i.layer, nil
		}
		names = append(names, i.name)
	}
	return 0, usagef("--extcap-interface %s: the interfaces are %s", printable(e.name), strings.Join(names, " and "))
}

// options lists the options that Wireshark offers its user before a capture.
func (e *extcap) options(w io.Writer, layer divert.Layer) error {
	list := []string{
		"{call=--snapshot-length}{display=Snapshot length}{type=integer}{range=0,65575}{default=0}{tooltip=Receive only so many bytes of each packet, 64 or more. 0: all}",
		"{call=--priority}{display=Priority}{type=integer}{range=-30000,30000}{default=0}{tooltip=Packets meet handles from the highest priority to the lowest}",
		"{call=--engine}{display=Engine}{type=selector}{tooltip=Who decides which packets match}",
		"{call=--strict}{display=Strict filter language}{type=boolflag}{default=false}{tooltip=The filter language of WinDivert 2.2 to the letter}",
	}
	if layer == divert.LayerNetwork {
		list = append(list, "{call=--fragments}{display=See fragments}{type=boolflag}{default=false}{tooltip=See inbound fragments as they come, not the datagram put together}")
	}
	var b strings.Builder
	for i, arg := range list {
		fmt.Fprintf(&b, "arg {number=%d}%s\n", i, arg)
	}
	for i, name := range wordsOf(engines) {
		fmt.Fprintf(&b, "value {arg=2}{value=%s}{display=%s}{default=%v}\n", name, name, i == 0)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// dump returns the run that captures.
func (e *extcap) dump(layer divert.Layer) *dump {
	d := &dump{app: e.app, write: e.fifo, snap: e.snap, silent: true}
	d.flags.layers, d.flags.choice.names = []divert.Layer{layer}, wordsOf([]divert.Layer{layer})
	d.flags.strict, d.flags.priority, d.flags.fragments, d.flags.engine = e.strict, e.priority, e.fragments, e.engine
	d.flags.queueLength, d.flags.queueTime, d.flags.queueSize = maxQueueLength, maxQueueTime, maxQueueSize
	return d
}

// check prints the error in a filter to standard output, where Wireshark looks; nothing if the filter is right.
func (e *extcap) check(w io.Writer, layer divert.Layer) error {
	if strings.TrimSpace(e.filter) == "" {
		return nil
	}
	_, err := e.dump(layer).flags.compileText(e.filter)
	var f *filter.Error
	if errors.As(err, &f) {
		_, err = io.WriteString(w, refusal(f)+"\n")
	}
	return err
}

// write captures until the pipe is closed or a signal comes.
func (e *extcap) write(cmd *cobra.Command, layer divert.Layer) error {
	switch {
	case e.fifo == "":
		return usagef("--capture needs the pipe to write to: --fifo")
	case e.snap != 0 && e.snap < divert.MinSnapLength:
		return usagef("--snapshot-length %d is less than the longest headers take; it must be 0 or at least %d", e.snap, divert.MinSnapLength)
	}
	d := e.dump(layer)
	err := d.compile([]string{e.filter})
	if err == nil {
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		err = d.live(ctx)
	}
	if err != nil && d.sink == nil {
		// Report the error first: Wireshark shows all it has read once the pipe ends.
		err = exitStatus(e.app.exit(cmd, err, false))
		endPipe(e.fifo)
	}
	return err
}

// endPipe opens the pipe and closes it again. Wireshark waits for that without limit, even if the program that should
// write has ended. It may open its end late, or have given up, so endPipe waits for a short time.
func endPipe(name string) {
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		f, err := os.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			_ = f.Close() // nothing was written
			return
		}
		if !errors.Is(err, syscall.ENXIO) { // ENXIO: nobody reads yet
			return
		}
	}
}

// installLink links this program into the user's extcap folder, and puts the plugin where Wireshark finds it. The
// folders are those of Wireshark on Unix (wsutil/filesystem.c).
func (e *extcap) installLink() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return err
	}
	folder := e.folder
	if folder == "" {
		folder = filepath.Join(home, ".local", "lib", "wireshark", "extcap")
	}
	link := filepath.Join(folder, "divert")
	plugin := filepath.Join(home, ".local", "lib", "wireshark", "plugins", "divert.lua")
	if err := replaceLink(program, link); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(plugin), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(plugin, wiresharkPlugin, 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.app.out, "%s\n%s\n", printable(link), printable(plugin))
	return err
}

// replaceLink makes a link and replaces an older link, but no other file.
func replaceLink(target, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if info, err := os.Lstat(name); err == nil {
		if info.Mode()&os.ModeSymlink == 0 {
			return fmt.Errorf("%s already exists and is not a link: remove it first", printable(name))
		}
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return os.Symlink(target, name)
}
