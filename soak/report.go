//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

// sample is a measurement of all resources at one time.
type sample struct {
	at          time.Time
	memory      int // KiB of this process and its workers
	descriptors int // of the same processes
	goroutines  int
	programs    int // eBPF programs of the whole machine
	tables      int
}

// sample takes a sample.
func (s *soak) sample() {
	one := sample{at: time.Now(), goroutines: runtime.NumGoroutine(), programs: programs()}
	pids := []int{os.Getpid()}
	for _, w := range s.ws {
		pids = append(pids, w.cmd.Process.Pid)
	}
	for _, pid := range pids {
		one.memory += resident(pid)
		if d, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err == nil {
			one.descriptors += len(d)
		}
	}
	if tables, err := s.pair.A.NFTables(); err == nil {
		one.tables = len(tables)
	}
	s.samples = append(s.samples, one)
}

// resident returns the memory of a process in KiB, 0 if it has ended.
func resident(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	var size, pages int
	if err == nil {
		_, err = fmt.Sscan(string(b), &size, &pages)
	}
	if err != nil {
		return 0
	}
	return pages * os.Getpagesize() / 1024
}

// programs returns the number of eBPF programs of the machine, 0 without permission.
func programs() (n int) {
	for id := ebpf.ProgramID(0); ; n++ {
		var err error
		if id, err = ebpf.ProgramGetNextID(id); err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				return 0
			}
			return n
		}
	}
}

// losses sums up the losses of the flows.
func (r *result) losses() (by map[string]int, left []time.Time, sent, arrived, doubled, overtook uint64, refused int) {
	var lost []time.Time
	for _, f := range r.flows {
		f.mu.Lock()
		lost = append(lost, f.lost...)
		_, unexplained := explain(f.refused, r.windows)
		refused += len(unexplained)
		sent, arrived, doubled, overtook = sent+f.next, arrived+f.arrived, doubled+f.doubled, overtook+f.overtook
		f.mu.Unlock()
	}
	by, left = explain(lost, r.windows)
	return by, left, sent, arrived, doubled, overtook, refused
}

// near lists when losses were sent, and the events just before and after each.
func (r *result) near(lost []time.Time) string {
	slices.SortFunc(lost, time.Time.Compare)
	var text []string
	for i, at := range lost {
		if i > 0 && at.Sub(lost[i-1]) < 100*time.Millisecond {
			continue // the same event
		}
		if len(text) == 10 {
			text = append(text, "…")
			break
		}
		before, after := "nothing", "nothing"
		for _, w := range r.windows { // ordered by time
			if w.at.Before(at) {
				before = fmt.Sprintf("%s %v before", w.why, at.Sub(w.at).Round(time.Millisecond))
			} else {
				after = fmt.Sprintf("%s %v after", w.why, w.at.Sub(at).Round(time.Millisecond))
				break
			}
		}
		text = append(text, fmt.Sprintf("%v (%s, %s)", at.Sub(r.begin).Round(time.Millisecond), before, after))
	}
	return strings.Join(text, "; ")
}

// growth compares the second quarter of a run with its last: the ratio of the means.
func (r *result) growth(of func(sample) int) float64 {
	n := len(r.samples)
	if n < 16 {
		return 1 // too short to tell
	}
	mean := func(s []sample) (sum float64) {
		for _, one := range s {
			sum += float64(of(one))
		}
		return sum/float64(len(s)) + 1
	}
	return mean(r.samples[3*n/4:n-1]) / mean(r.samples[n/4:n/2])
}

// measures are the values that must not grow.
var measures = []struct {
	name string
	of   func(sample) int
	most float64 // ratio of the end to the middle
}{
	{"memory, KiB", func(s sample) int { return s.memory }, 1.5},
	{"descriptors", func(s sample) int { return s.descriptors }, 1.5},
	{"goroutines", func(s sample) int { return s.goroutines }, 1.5},
	{"eBPF programs", func(s sample) int { return s.programs }, 2},
	{"tables of the host", func(s sample) int { return s.tables }, 2},
}

// faults returns the faults of a run.
func (r *result) faults() (list []string) {
	_, left, _, _, doubled, _, refused := r.losses()
	if len(left) > r.full {
		list = append(list, fmt.Sprintf("%d datagrams are lost and nothing says why: %s", len(left)-r.full, r.near(left)))
	}
	if doubled > 0 {
		list = append(list, fmt.Sprintf("%d datagrams came twice", doubled))
	}
	if refused > 0 {
		list = append(list, fmt.Sprintf("%d datagrams were refused by the sender's own socket", refused))
	}
	if r.sum.Lost > 0 {
		list = append(list, fmt.Sprintf("handles count %d lost packets", r.sum.Lost))
	}
	for _, m := range measures {
		if g := r.growth(m.of); g > m.most {
			list = append(list, fmt.Sprintf("%s: %.2f times as much at the end as in the middle", m.name, g))
		}
	}
	for _, l := range r.left {
		if !strings.Contains(l, "strangers") && !strings.Contains(l, "table inet divert") { // tables of killed processes, see docs/linux.md
			list = append(list, "left behind: "+l)
		}
	}
	return append(list, r.trouble...)
}

func (r *result) fine() bool { return len(r.faults()) == 0 }

// print writes the report as Markdown.
func (r *result) print(w io.Writer) {
	by, left, sent, arrived, doubled, overtook, _ := r.losses()
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	fmt.Fprintf(w, "# Soak of %v\n\n", r.end.Sub(r.begin).Round(time.Second))
	fmt.Fprintf(w, "%s, Linux %s, %d processors, %s, seed %d.\n\n", r.begin.UTC().Format("2006-01-02"), unix.ByteSliceToString(uts.Release[:]), runtime.NumCPU(), runtime.Version(), r.seed)
	fmt.Fprintf(w, "| datagrams | |\n|---|---|\n| sent | %d |\n| arrived | %d |\n", sent, arrived)
	for _, why := range slices.Sorted(maps.Keys(by)) {
		fmt.Fprintf(w, "| lost, %s | %d |\n", why, by[why])
	}
	fmt.Fprintf(w, "| lost, the receiver's buffer was full | %d |\n| lost, unexplained | %d |\n| twice | %d |\n| behind a later one | %d |\n\n", min(r.full, len(left)), max(len(left)-r.full, 0), doubled, overtook)
	fmt.Fprintf(w, "| what happened | |\n|---|---|\n| handles opened, by workers that ended well | %d |\n| filters changed | %d |\n| packets carried | %d |\n| copies | %d |\n| workers killed | %d |\n| workers stopped for 0.3 s | %d |\n| foreign transactions | %d |\n| link down and up | %d |\n\n",
		r.sum.Opened, r.sum.Changed, r.sum.Carried, r.sum.Copies, r.kills, r.stops, r.foreign, r.flaps)
	fmt.Fprintf(w, "| | least | most | last | end / middle |\n|---|---|---|---|---|\n")
	for _, m := range measures {
		values := make([]int, 0, len(r.samples))
		for _, s := range r.samples {
			values = append(values, m.of(s))
		}
		if len(values) > 0 {
			fmt.Fprintf(w, "| %s | %d | %d | %d | %.2f |\n", m.name, slices.Min(values), slices.Max(values), values[len(values)-1], r.growth(m.of))
		}
	}
	if f := r.faults(); len(f) > 0 {
		fmt.Fprintf(w, "\n**Faults:**\n\n- %s\n", strings.Join(f, "\n- "))
	} else {
		fmt.Fprintf(w, "\nNo faults.\n")
	}
}

// full returns the number of datagrams that the hosts dropped for lack of space in a socket's buffer.
func full(hosts ...*lab.Host) (n int, err error) {
	for _, h := range hosts {
		err = errors.Join(err, h.Do(func() error {
			for _, file := range []string{"snmp", "snmp6"} {
				b, err := os.ReadFile("/proc/thread-self/net/" + file)
				if err != nil {
					return err
				}
				n += bufferErrors(string(b))
			}
			return nil
		}))
	}
	return n, err
}

// bufferErrors parses the counter of either family: names and values are on two lines, or on each line.
func bufferErrors(text string) (n int) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 2 && fields[0] == "Udp6RcvbufErrors":
			n, _ = strconv.Atoi(fields[1])
		case len(fields) > 0 && fields[0] == "Udp:" && names == nil:
			names = fields
		case len(fields) > 0 && fields[0] == "Udp:":
			if i := slices.Index(names, "RcvbufErrors"); i > 0 && i < len(fields) {
				n, _ = strconv.Atoi(fields[i])
			}
		}
	}
	return n
}
