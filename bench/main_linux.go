//go:build linux

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

func main() {
	runChild()
	if err := lab.Rootless(); err != nil {
		fail(err)
	}
	if err := bench(os.Args[1:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	os.Exit(1)
}

// settings are the values of the flags.
type settings struct {
	selection
	json, svg string
	quiet     bool
}

func parse(args []string) (*settings, error) {
	var s settings
	f := flag.NewFlagSet("bench", flag.ExitOnError)
	who := f.String("contenders", "*", "comma-separated `patterns` of the contenders; \"none\" is always one")
	what := f.String("loads", "*", "comma-separated `patterns` of the loads")
	seconds := f.Float64("seconds", 1, "duration of each cell")
	f.IntVar(&s.rounds, "rounds", 5, "how many rounds")
	f.BoolVar(&s.all, "all", false, "every combination, not only the ones that matter most")
	f.StringVar(&s.json, "json", "", "write the results to a `file` as JSON")
	f.StringVar(&s.svg, "svg", "", "write a picture of the results to a `file`")
	f.BoolVar(&s.quiet, "q", false, "do not tell the progress")
	f.Usage = func() { usageText(f) }
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if s.rounds < 1 || *seconds < 0.02 || *seconds > 3600 {
		return nil, errors.New("at least 1 round, and 0.02 to 3600 seconds")
	}
	s.duration = time.Duration(*seconds * float64(time.Second))
	return &s, s.choose(*who, *what)
}

// usageText lists contenders and loads.
func usageText(f *flag.FlagSet) {
	w := f.Output()
	fmt.Fprintln(w, "usage: bench [flags]\n\nflags:")
	f.PrintDefaults()
	fmt.Fprintln(w, "\ncontenders:")
	for _, c := range contenders {
		fmt.Fprintf(w, "  %-15s %s\n", c.name, c.about)
	}
	fmt.Fprintln(w, "\nloads:")
	for _, l := range loads {
		fmt.Fprintf(w, "  %-15s %s\n", l.name, l.title)
	}
}

// choose sets contenders and loads to those that match the patterns.
func (s *selection) choose(who, what string) error {
	for i := range contenders {
		c := &contenders[i]
		if yes, err := matches(who, c.name); err != nil {
			return err
		} else if yes || c.name == none {
			s.contenders = append(s.contenders, c)
		}
	}
	for i := range loads {
		l := &loads[i]
		if yes, err := matches(what, l.name); err != nil {
			return err
		} else if yes {
			s.loads = append(s.loads, l)
		}
	}
	if len(s.loads) == 0 {
		return fmt.Errorf("no load is called %q", what)
	}
	if len(s.contenders) == 1 && who != none {
		return fmt.Errorf("no contender is called %q", who)
	}
	return nil
}

// matches reports whether one of the comma-separated patterns matches a name.
func matches(patterns, name string) (bool, error) {
	for p := range strings.SplitSeq(patterns, ",") {
		if yes, err := path.Match(p, name); yes || err != nil {
			return yes, err
		}
	}
	return false, nil
}

// bench executes the command line.
func bench(args []string) error {
	s, err := parse(args)
	if err != nil {
		return err
	}
	r := &report{Machine: thisMachine(), Rounds: s.rounds, Seconds: s.duration.Seconds()}
	pair, err := lab.TwoHosts(lab.LinkOptions{})
	if err != nil {
		return err
	}
	defer pair.Close()
	defer removeCPrograms()
	got, err := s.run(pair, s.progress())
	if err != nil {
		return err
	}
	r.Summaries, r.Goals, r.Skipped, r.Cells = got.summarise(), got.judge(), got.Skipped, got.Cells
	r.Others = number(got.others())
	return errors.Join(r.writeTable(os.Stdout), writeFile(s.json, r.writeJSON), writeFile(s.svg, r.writeSVG))
}

// progress returns the function that reports progress on standard error.
func (s *settings) progress() func(int, *load, *contender) {
	if s.quiet {
		return func(int, *load, *contender) {}
	}
	total, done := 0, 0
	for _, l := range s.loads {
		total += s.rounds * len(s.pairs(l))
	}
	return func(round int, l *load, c *contender) {
		fmt.Fprintf(os.Stderr, "\r\x1b[K%d/%d  round %d  %s  %s", done, total, round+1, l.name, c.name)
		if done++; done == total {
			fmt.Fprint(os.Stderr, "\r\x1b[K")
		}
	}
}

// writeFile writes a file; without a name it does nothing.
func writeFile(name string, write func(io.Writer) error) error {
	if name == "" {
		return nil
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}
