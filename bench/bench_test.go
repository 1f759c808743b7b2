//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) {
	runChild()
	lab.Main(m)
}

// TestEveryPair runs every contender with every load that makes sense, for a moment.
func TestEveryPair(t *testing.T) {
	if testing.Short() {
		t.Skip("about a minute")
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	t.Cleanup(removeCPrograms)
	s := &selection{rounds: 1, duration: 50 * time.Millisecond, all: true}
	if err := s.choose("*", "*"); err != nil {
		t.Fatal(err)
	}
	skipped := make(map[string]string)
	for _, l := range s.loads {
		t.Run(l.name, func(t *testing.T) {
			for _, c := range s.pairs(l) {
				t.Run(c.name, func(t *testing.T) {
					one, err := measureAtAll(s, pair, l, c)
					if no := (errUnavailable{}); errors.As(err, &no) {
						skipped[c.name] = no.reason
						t.Skipf("not here: %v", no)
					}
					if err != nil {
						t.Fatal(err)
					}
					checkCell(t, one, c)
				})
			}
		})
	}
	for name := range skipped {
		if os.Getenv("DIVERT_NEED_KERNEL") != "" {
			t.Errorf("%s was left out: %s", name, skipped[name])
		}
		if slices.Contains([]string{none, "one-by-one", "interpreter-64", "nft-1"}, name) {
			t.Errorf("%s needs no more than a lab does: %s", name, skipped[name])
		}
	}
}

// measureAtAll measures for a moment, and for longer if on a busy machine nothing came of it.
func measureAtAll(s *selection, pair *lab.Pair, l *load, c *contender) (*cell, error) {
	longer := *s
	for tries := 0; ; tries++ {
		one, err := longer.measure(pair, l, c)
		if tries == 3 || !errors.Is(err, errNothing) && !(err == nil && c.copies && one.Handled == 0) {
			return one, err
		}
		longer.duration *= 4
	}
}

// checkCell checks that the numbers of a cell fit together.
func checkCell(t *testing.T, one *cell, c *contender) {
	t.Helper()
	if one.Count <= 0 || one.Seconds <= 0 || one.Rate <= 0 || one.CPU < 0 || one.CPUAll <= one.CPU || one.Others < 0 || one.Others > 1 {
		t.Errorf("no sane measurement: %+v", one)
	}
	isFlood := strings.HasPrefix(one.Load, "udp")
	passing := isFlood && !c.drops
	if passing && one.Sent != uint64(one.Count)+one.Lost {
		t.Errorf("%d packets sent, %v arrived, %d lost", one.Sent, one.Count, one.Lost)
	}
	if one.Load == "latency" && !(0 < one.P50 && one.P50 <= one.P99 && one.P99 <= one.P999) {
		t.Errorf("percentiles %v, %v, %v", one.P50, one.P99, one.P999)
	}
	switch {
	case c.name == none, strings.HasPrefix(c.name, "idle"), strings.HasPrefix(c.name, "set"), c.name == "nft-1", c.name == "empty-chain":
		if one.Handled != 0 {
			t.Errorf("%d packets were dealt with, which is to be none", one.Handled)
		}
	case strings.HasPrefix(c.name, "first"):
		// Only the beginnings of flows come, perhaps before anything is measured.
		if passing && one.Handled > uint64(one.Count)/2 {
			t.Errorf("%v packets arrived, as many as %d were dealt with", one.Count, one.Handled)
		}
	case c.copies:
		if one.Handled == 0 {
			t.Error("no copy came")
		}
	case c.drops:
		// More may come: neighbours talk to each other, too.
		if one.Handled < one.Sent {
			t.Errorf("%d of %d packets dropped", one.Handled, one.Sent)
		}
	case passing:
		if one.Handled < uint64(one.Count) {
			t.Errorf("%v packets arrived, %d were dealt with", one.Count, one.Handled)
		}
	case one.Handled == 0:
		t.Error("no packet was dealt with")
	}
}

// made are results with known numbers: contender x does half as much as none, except in one round.
func made() *results {
	r := &results{Skipped: map[string]string{"ring": "no <rights>"}}
	add := func(load, contender string, round int, rate float64, p50 time.Duration) {
		r.Cells = append(r.Cells, &cell{Load: load, Contender: contender, Round: round, Rate: rate, P50: p50, P99: p50, Lost: 1})
	}
	for round, base := range []float64{100, 1000, 10} {
		add("udp64", none, round, base, 0)
		add("udp64", "accept-64", round, base*[]float64{0.5, 0.9, 0.86}[round], 0)
		add("latency", "one-by-one", round, base, 1000)
		add("latency", "accept-1", round, base, []time.Duration{900, 1100, 5000}[round])
	}
	return r
}

func TestSummary(t *testing.T) {
	list := made().summarise()
	if len(list) != 4 {
		t.Fatalf("%d summaries", len(list))
	}
	s := list[1]
	if s.Load != "udp64" || s.Contender != "accept-64" || s.Rounds != 3 || s.Lost != 3 {
		t.Errorf("%+v", s)
	}
	for _, c := range []struct {
		name      string
		got, want number
	}{
		{"ratio", s.Ratio, 0.86}, {"lowest ratio", s.RatioLow, 0.5}, {"highest ratio", s.RatioHigh, 0.9},
		{"rate", s.Rate, 50}, {"lowest rate", s.RateLow, 8.6}, {"highest rate", s.RateHigh, 900},
	} {
		if math.Abs(float64(c.got-c.want)) > 1e-9 {
			t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
		}
	}
	if !math.IsNaN(float64(list[2].Ratio)) {
		t.Errorf("a ratio to what did not run: %v", list[2].Ratio)
	}
}

func TestGoals(t *testing.T) {
	reached := make(map[string]bool)
	for _, o := range made().judge() {
		reached[o.Load+" "+o.Contender+" "+o.Base+" "+o.Metric] = o.Reached
	}
	want := map[string]bool{
		"udp64 accept-64 none rate":        true,  // 0.86 of at least 0.85
		"latency accept-1 one-by-one p50":  false, // 1.1 of at most 1
		"latency accept-1 one-by-one p99":  false,
		"udp64 accept-64 one-by-one rate":  false, // did not run: not judged
		"latency accept-64 one-by-one p50": false,
	}
	if len(reached) != 3 {
		t.Errorf("judged: %v", reached)
	}
	for goal, yes := range want {
		if reached[goal] != yes {
			t.Errorf("%s: %t", goal, reached[goal])
		}
	}
	for _, g := range goals {
		l := slices.IndexFunc(loads, func(l load) bool { return l.name == g.load })
		for _, name := range []string{g.contender, g.base} {
			if c := contenderNamed(name); l < 0 || c == nil || !contains(c.loads, g.load) {
				t.Errorf("the goal of %s to %s with %s is of no default selection", g.contender, g.base, g.load)
			}
		}
	}
}

func TestReport(t *testing.T) {
	r := made()
	rep := &report{Machine: thisMachine(), Rounds: 3, Seconds: 1, Summaries: r.summarise(), Goals: r.judge(), Skipped: r.Skipped, Cells: r.Cells}
	var table, js, svg bytes.Buffer
	if err := errors.Join(rep.writeTable(&table), rep.writeJSON(&js), rep.writeSVG(&svg)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"accept-64", "0.86", "0.50–0.90", "NOT REACHED", "left out: ring: no <rights>"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	var back struct{ Summaries []map[string]any }
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || len(back.Summaries) != 4 {
		t.Errorf("JSON: %v\n%s", err, js.String())
	}
	if v, ok := back.Summaries[2]["Ratio"]; v != nil || !ok {
		t.Errorf("a ratio that is not there: %v", v)
	}
	rects := 0
	for d := xml.NewDecoder(&svg); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			rects++
		}
	}
	if rects != 3 { // the background, none, accept-64
		t.Errorf("%d rectangles", rects)
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name, who, what   string
		contenders, loads int
		fails             bool
	}{
		{"everything", "*", "*", len(contenders), len(loads), false},
		{"none comes along", "accept-64", "tcp1", 2, 1, false},
		{"patterns", "accept-*,ring", "tcp?", 8, 2, false},
		{"no such contender", "nobody", "*", 0, 0, true},
		{"no such load", "*", "nothing", 0, 0, true},
		{"a broken pattern", "[", "*", 0, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var s selection
			err := s.choose(c.who, c.what)
			if (err != nil) != c.fails {
				t.Fatal(err)
			}
			if err == nil && (len(s.contenders) != c.contenders || len(s.loads) != c.loads) {
				t.Errorf("%d contenders, %d loads", len(s.contenders), len(s.loads))
			}
		})
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values series
		want   float64
	}{
		{series{3}, 3}, {series{3, 1}, 2}, {series{9, 1, 2}, 2}, {series{4, 1, 3, 2}, 2.5},
	} {
		if got := c.values.median(); got != c.want {
			t.Errorf("median of %v: %v", c.values, got)
		}
	}
	if !math.IsNaN(series(nil).median()) {
		t.Error("nothing has a median")
	}
}
