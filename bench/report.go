//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report is the JSON form of a run.
type report struct {
	Machine   machine
	Rounds    int
	Seconds   float64 // of each cell
	Others    number  // fraction of the processors' time used by other processes
	Summaries []*summary
	Goals     []outcome
	Skipped   map[string]string
	Cells     []*cell
}

// machine describes the machine of a run.
type machine struct {
	Kernel, Arch, Go string
	CPU              string
	CPUs             int
	Load             string // average over 1, 5 and 15 minutes, when the run began
	Time             time.Time
}

func thisMachine() machine {
	m := machine{Arch: runtime.GOARCH, Go: runtime.Version(), CPUs: runtime.NumCPU(), Time: time.Now().UTC().Round(time.Second)}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	return m
}

// appendFloat writes a number with its significant digits.
func appendFloat(b []byte, v float64) []byte { return strconv.AppendFloat(b, v, 'g', 6, 64) }

// writeJSON writes the report.
func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	return e.Encode(r)
}

// writeTable writes the report for people.
func (r *report) writeTable(out io.Writer) error {
	m := r.Machine
	fmt.Fprintf(out, "Linux %s, %s, %d × %s, %s, load average %s\n%d rounds of %v s; medians, lowest and highest\n",
		m.Kernel, m.Arch, m.CPUs, m.CPU, m.Go, m.Load, r.Rounds, r.Seconds)
	fmt.Fprintf(out, "other processes took %s %% of the processors' time\n", fixed(r.Others*100, 0))
	for i := range loads {
		if err := r.writeLoad(out, &loads[i]); err != nil {
			return err
		}
	}
	if err := r.writeGoals(out); err != nil {
		return err
	}
	for _, c := range contenders {
		if reason, skipped := r.Skipped[c.name]; skipped {
			fmt.Fprintf(out, "left out: %s: %s\n", c.name, reason)
		}
	}
	return nil
}

func (r *report) writeLoad(out io.Writer, l *load) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	rows := 0
	for _, s := range r.Summaries {
		if s.Load != l.name {
			continue
		}
		if rows == 0 {
			fmt.Fprintf(out, "\n%s: %s\n", l.name, l.title)
			fmt.Fprintln(w, header(l))
		}
		rows++
		fmt.Fprintln(w, row(l, s))
	}
	return w.Flush()
}

// header is the first line of a load's table.
func header(l *load) string {
	columns := []string{"contender", "×none", "low–high", l.rate, "low–high"}
	if l.latency {
		columns = append(columns, "p50 µs", "p99 µs", "p99.9 µs")
	}
	columns = append(columns, "ns/"+strings.ReplaceAll(l.unit, " ", "-"), "with load", "×CPU", "lost", "copies lost")
	if l.connects {
		columns = append(columns, "resets")
	}
	if l.flows > 0 {
		columns = append(columns, "flows lost", "again", "maps MiB")
	}
	return strings.Join(columns, "\t") + "\t"
}

// row is the line of a contender.
func row(l *load, s *summary) string {
	columns := []string{
		s.Contender,
		fixed(s.Ratio, 2), fixed(s.RatioLow, 2) + "–" + fixed(s.RatioHigh, 2),
		l.scaled(s.Rate), l.scaled(s.RateLow) + "–" + l.scaled(s.RateHigh),
	}
	if l.latency {
		columns = append(columns, fixed(s.P50/1000, 1), fixed(s.P99/1000, 1), fixed(s.P999/1000, 1))
	}
	columns = append(columns, fixed(s.CPU, 0), fixed(s.CPUAll, 0), fixed(s.RatioCPU, 2), fmt.Sprint(s.Lost), fmt.Sprint(s.Missed))
	if l.connects {
		columns = append(columns, fmt.Sprint(s.Resets))
	}
	if l.flows > 0 {
		lost := "-"
		if s.FlowsLost != nil {
			lost = fmt.Sprint(*s.FlowsLost)
		}
		columns = append(columns, lost, fmt.Sprint(s.Again), fixed(number(s.Maps)/(1<<20), 1))
	}
	return strings.Join(columns, "\t") + "\t"
}

// scaled writes a rate in the load's unit.
func (l *load) scaled(n number) string { return fixed(n*number(l.scale), 2) }

// fixed writes a number with a number of decimals, "-" for NaN.
func fixed(n number, decimals int) string {
	if math.IsNaN(float64(n)) {
		return "-"
	}
	return strconv.FormatFloat(float64(n), 'f', decimals, 64)
}

func (r *report) writeGoals(out io.Writer) error {
	if len(r.Goals) == 0 {
		return nil
	}
	fmt.Fprintln(out, "\ngoals")
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, g := range r.Goals {
		word := "reached"
		if !g.Reached {
			word = "NOT REACHED"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", g.Load, g.subject(), fixed(g.Value, g.decimals()), g.bound(), word)
	}
	return w.Flush()
}
