//go:build linux

package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) {
	runChild()
	lab.Main(m)
}

// TestEveryPair briefly runs every contender with every load that makes sense.
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
		if l.flows > 0 {
			l = fewer(l)
		}
		t.Run(l.name, func(t *testing.T) {
			for _, c := range s.pairs(l) {
				if c.name == "prefixes-1m" && !contains(c.loads, l.name) {
					continue // it takes seconds to open, the same with each load
				}
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

// fewer returns a load of many flows, reduced so that its first rounds are short.
func fewer(l *load) *load {
	less := *l
	less.flows = 2000
	return &less
}

// loadNamed returns a load.
func loadNamed(t *testing.T, name string) *load {
	t.Helper()
	i := slices.IndexFunc(loads, func(l load) bool { return l.name == name })
	if i < 0 {
		t.Fatalf("there is no load %q", name)
	}
	return &loads[i]
}

// measureAtAll measures briefly, and for longer if a busy machine produced no result.
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

// checkCell checks that the numbers of a cell are consistent.
func checkCell(t *testing.T, one *cell, c *contender) {
	t.Helper()
	if one.Count <= 0 || one.Seconds <= 0 || one.Rate <= 0 || one.CPU < 0 || one.CPUAll <= one.CPU || one.Others < 0 || one.Others > 1 {
		t.Errorf("no sane measurement: %+v", one)
	}
	isFlood := strings.HasPrefix(one.Load, "udp") || strings.HasPrefix(one.Load, "flows")
	passing := isFlood && !c.drops
	if passing && one.Sent != uint64(one.Count)+one.Lost {
		t.Errorf("%d packets sent, %v arrived, %d lost", one.Sent, one.Count, one.Lost)
	}
	if one.Load == "latency" && !(0 < one.P50 && one.P50 <= one.P99 && one.P99 <= one.P999) {
		t.Errorf("percentiles %v, %v, %v", one.P50, one.P99, one.P999)
	}
	switch {
	case c.name == none, strings.HasPrefix(c.name, "idle"), strings.HasPrefix(c.name, "set-"), strings.HasPrefix(c.name, "prefixes"), c.name == "nft-1", c.name == "empty-chain":
		if one.Handled != 0 {
			t.Errorf("%d packets were dealt with, which is to be none", one.Handled)
		}
	case strings.HasPrefix(c.name, "first"):
		// Only the beginnings of flows are received, perhaps before the measurement.
		if passing && one.Handled > uint64(one.Count)/2 {
			t.Errorf("%v packets arrived, as many as %d were dealt with", one.Count, one.Handled)
		}
	case c.copies:
		if one.Handled == 0 {
			t.Error("no copy came")
		}
	case c.drops:
		// There may be more: neighbours also send to each other.
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

// TestManyFlows: a program that decides each flow at its first packet receives no more of it, and one that counts
// receives no more than it asked for.
func TestManyFlows(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	l := fewer(loadNamed(t, "flows100k"))
	s := &selection{rounds: 1, duration: 20 * time.Millisecond}
	for _, name := range []string{none, "accept-64", "accept-flow", "first-6"} {
		t.Run(name, func(t *testing.T) {
			c := contenderNamed(name)
			one, err := measureAtAll(s, pair, l, c)
			if no := (errUnavailable{}); errors.As(err, &no) {
				t.Skipf("not here: %v", no)
			}
			if err != nil {
				t.Fatal(err)
			}
			checkCell(t, one, c)
			if one.FlowsLost != nil && uint64(*one.FlowsLost) > one.Lost || one.FlowsLost == nil && name != none {
				t.Errorf("%d packets lost, and flows of which packets were lost: %v", one.Lost, one.FlowsLost)
			}
			if decides := name == "accept-flow"; decides && one.Again > 2 || !decides && one.Again != 0 {
				t.Errorf("as many as %d packets of a flow came after its verdict", one.Again)
			}
			if holds := name == "accept-flow" || name == "first-6"; holds && one.Maps < uint64(l.flows)*40 {
				t.Errorf("maps of %d flows with %d bytes", l.flows, one.Maps)
			}
		})
	}
}

// TestFlowsLost: flows with fewer packets received than sent are counted.
func TestFlowsLost(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	l := fewer(loadNamed(t, "flows100k"))
	c := &course{from: pair.A, to: pair.B, cell: &cell{load: l}}
	s, err := newSink(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.remove(); err != nil {
			t.Error(err)
		}
	}()
	seen, err := c.arrivals()
	if err != nil {
		t.Fatal(err)
	}
	defer seen.close()
	if seen.counts == nil {
		t.Skip("nobody counts flows here: that takes the right to load programs")
	}
	var r *rotor
	if err := pair.A.Do(func() (err error) { r, err = newRotor(c, 64); return err }); err != nil {
		t.Fatal(err)
	}
	defer r.close()
	const turns, rest = 2, 300
	sent := uint64(turns*l.flows + rest)
	for r.sent < sent {
		if err := r.burst(int(sent - r.sent)); err != nil {
			t.Fatal(err)
		}
		// One burst after the other: the receiver's backlog has room for a burst, however late it gets a processor.
		for began := time.Now(); ; {
			arrived, err := s.packets()
			if err != nil || time.Since(began) > patience {
				t.Fatalf("%d of %d packets have arrived, %v", arrived, r.sent, err)
			}
			if arrived == r.sent {
				break
			}
		}
	}
	for _, c := range []struct {
		name string
		sent uint64
		want int
	}{
		{"all have arrived", sent, 0},
		{"the next 500 have not", sent + 500, 500},
		{"those to the end of the turn", sent + uint64(l.flows) - rest, l.flows - rest},
		{"two of some flows", sent + uint64(l.flows) + 1, l.flows},
	} {
		if got, err := seen.short(c.sent); err != nil || got == nil || *got != c.want {
			t.Errorf("%s: %v flows, %v; want %d", c.name, got, err, c.want)
		}
	}
}

// TestAgain: packets of a flow after its first one count, whatever else arrives.
func TestAgain(t *testing.T) {
	packetOf := func(flow uint32, change func([]byte)) divert.Packet {
		b := make([]byte, 64)
		b[0], b[9] = 0x45, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(b[22:], loadPort)
		binary.BigEndian.PutUint32(b[flowNumberAt:], flow)
		change(b)
		return divert.Packet{Data: b}
	}
	same := func([]byte) {}
	a := again{came: make([]uint32, 3)}
	for i, c := range []struct {
		name string
		p    divert.Packet
		most uint64
	}{
		{"the first packet of a flow", packetOf(1, same), 0},
		{"the first one of another", packetOf(2, same), 0},
		{"the second", packetOf(1, same), 1},
		{"the second of the other", packetOf(2, same), 1},
		{"the third", packetOf(1, same), 2},
		{"of no flow of the load", packetOf(3, same), 2},
		{"TCP", packetOf(1, func(b []byte) { b[9] = unix.IPPROTO_TCP }), 2},
		{"to another port", packetOf(1, func(b []byte) { b[23]++ }), 2},
		{"short", divert.Packet{Data: make([]byte, 20)}, 2},
		{"the fourth", packetOf(1, same), 3},
	} {
		a.note([]divert.Packet{c.p})
		if got := a.most.Load(); got != c.most {
			t.Errorf("%d, %s: %d, want %d", i, c.name, got, c.most)
		}
	}
}

// TestQUIC: datagrams sent together arrive, whether or not they are received together.
func TestQUIC(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	s := &selection{rounds: 1, duration: 20 * time.Millisecond}
	for _, load := range []string{"quic", "quic-single"} {
		for _, name := range []string{none, "accept-64", "accept-flow"} {
			t.Run(load+"/"+name, func(t *testing.T) {
				c := contenderNamed(name)
				one, err := measureAtAll(s, pair, loadNamed(t, load), c)
				if no := (errUnavailable{}); errors.As(err, &no) {
					t.Skipf("not here: %v", no)
				}
				if err != nil {
					t.Fatal(err)
				}
				checkCell(t, one, c)
				if one.Sent != uint64(one.Count)+one.Lost {
					t.Errorf("%d datagrams sent, %v arrived, %d lost", one.Sent, one.Count, one.Lost)
				}
				// UDP is queued datagram by datagram.
				if name == "accept-64" && one.Handled < uint64(one.Count) {
					t.Errorf("%v datagrams arrived, %d were dealt with", one.Count, one.Handled)
				}
			})
		}
	}
}

// TestQUICWindow: the sender has at most the window in flight, and continues when all of that is lost.
func TestQUICWindow(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	if err := unix.SetsockoptTimeval(ends[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 1000}); err != nil {
		t.Fatal(err)
	}
	acknowledge := func(n uint64) {
		t.Helper()
		var b [8]byte
		binary.NativeEndian.PutUint64(b[:], n)
		if _, err := unix.Write(ends[1], b[:]); err != nil {
			t.Fatal(err)
		}
	}
	s := &quicSender{fd: ends[0]}
	for _, c := range []struct {
		name        string
		sent, ack   uint64 // ack 0: none arrives
		acked, lost uint64
	}{
		{"room", 100, 0, 0, 0},
		{"the window is full, and an acknowledgement comes", quicWindow, 200, 200, 0},
		{"nothing comes", 200 + quicWindow, 0, 200, quicWindow},
		{"one that had been overtaken", 200 + quicWindow, 100, 200, quicWindow},
		{"not all were lost", 200 + quicWindow, 300, 300, quicWindow - 100},
		{"nothing was lost", 200 + quicWindow, 200 + quicWindow, 200 + quicWindow, 0},
	} {
		s.sent = c.sent
		if c.ack > 0 {
			acknowledge(c.ack)
		}
		if err := s.room(16); err != nil {
			t.Fatal(c.name, err)
		}
		if s.acked != c.acked || s.lost != c.lost {
			t.Errorf("%s: %d acknowledged and %d lost, want %d and %d", c.name, s.acked, s.lost, c.acked, c.lost)
		}
	}
}

// made returns results with known numbers: contender x is half as fast as none, except in one round.
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
	r := made()
	r.Cells = append(r.Cells,
		&cell{Load: "udp64", Contender: "c-queue", Rate: 40, CPU: 1000},
		&cell{Load: "udp64", Contender: "nft-1", Rate: 95},
		&cell{Load: "udp64", Contender: "idle-1", Rate: 93.6},
		&cell{Load: "udp64", Contender: "idle-10", Rate: 92},
		&cell{Load: "flows100k", Contender: "accept-flow", Again: 3, FlowsLost: new(int)},
	)
	r.Cells[1].CPU = 1100.4
	var outcomes []string
	for _, o := range r.judge() {
		outcomes = append(outcomes, fmt.Sprintf("%s: %s %s %s %t", o.Load, o.subject(), fixed(o.Value, o.decimals()), o.bound(), o.Reached))
	}
	// Contenders that did not run are not judged.
	want := []string{
		"udp64: rate of idle-1 less that of nft-1, ÷ none -0.01 ≥ -0.02 true",
		"udp64: rate of idle-10 less that of nft-1, ÷ none -0.03 ≥ -0.02 false",
		"udp64: rate of accept-64 to c-queue 1.25 ≥ 1.00 true",
		"udp64: processor time of accept-64 to c-queue 1.10 ≤ 1.00 false",
		"udp64: processor time in ns of accept-64 0 ≤ 1100 true",
		"latency: p50 of accept-1 to one-by-one 1.10 ≤ 1.00 false",
		"latency: p99 of accept-1 to one-by-one 1.10 ≤ 1.00 false",
		"flows100k: packets of a flow after its verdict of accept-flow 3 ≤ 2 false",
		"flows100k: flows with lost packets of accept-flow 0 ≤ 0 true",
	}
	if !slices.Equal(outcomes, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(outcomes, "\n"), strings.Join(want, "\n"))
	}
	for _, g := range goals {
		l := loadNamed(t, g.load)
		for _, name := range []string{g.contender, g.base} {
			if c := contenderNamed(name); name != "" && (c == nil || name != none && !contains(c.loads, l.name)) {
				t.Errorf("the goal of %s to %q with %s is of no default selection", g.contender, g.base, g.load)
			}
		}
	}
}

func TestReport(t *testing.T) {
	r := made()
	lost := 7
	r.Cells = append(r.Cells, &cell{Load: "flows100k", Contender: none, Rate: 1, FlowsLost: &lost, Again: 11, Maps: 3 << 20},
		&cell{Load: "connect", Contender: none, Rate: 1, Resets: 2}, &cell{Load: "connect", Contender: none, Round: 1, Rate: 1, Resets: 3})
	rep := &report{Machine: thisMachine(), Rounds: 3, Seconds: 1, Summaries: r.summarise(), Goals: r.judge(), Skipped: r.Skipped, Cells: r.Cells}
	var table, js, svg bytes.Buffer
	if err := errors.Join(rep.writeTable(&table), rep.writeJSON(&js), rep.writeSVG(&svg)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"accept-64", "0.86", "0.50–0.90", "  maps MiB", "  7     11       3.0\n", "  resets\n", "       5\n", "NOT REACHED", "left out: ring: no <rights>"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	var back struct{ Summaries []map[string]any }
	if err := json.Unmarshal(js.Bytes(), &back); err != nil || len(back.Summaries) != 6 {
		t.Errorf("JSON: %v\n%s", err, js.String())
	}
	if v, ok := back.Summaries[3]["Ratio"]; v != nil || !ok {
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
	if rects != 5 { // the background, none, accept-64, none twice more
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
