package impair

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseSchedule(t *testing.T) {
	got, err := ParseSchedule([]byte(`# a bad day
repeat: true
phases:
  - name: good
    for: 30s
    rules:
      - {lag: 20ms, jitter: 2ms, distribution: normal}
  - name: "bad"
    for: 1m30s
    rules:
      - filter: udp and (outbound or inbound)
        direction: out
        loss: 30%
        loss-run: 5
      - filter: >-
          tcp.DstPort == 80
          or tcp.SrcPort == 80
        rate: 1.5mbit
        burst: 3000
        queue: 100, 64kB, 200ms
        unordered: false
        reset: 0.001
  - for: 1s
`))
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.Phases {
		for j := range got.Phases[i].Rules {
			got.Phases[i].Rules[j].place = place{}
		}
	}
	want := &Schedule{Repeat: true, Phases: []Phase{
		{"good", 30 * time.Second, []Rule{{Lag: 20 * time.Millisecond, Jitter: 2 * time.Millisecond, Distribution: Normal}}},
		{"bad", 90 * time.Second, []Rule{
			{Filter: "udp and (outbound or inbound)", Direction: Out, Loss: 0.3, LossRun: 5},
			{Filter: "tcp.DstPort == 80 or tcp.SrcPort == 80", Rate: 1_500_000, Burst: 3000, Queue: Limit{100, 64_000, 200 * time.Millisecond}, Reset: 0.001},
		}},
		{For: time.Second},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
}

func TestParseScheduleErrors(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"empty", "", "the file is empty; it needs rules or phases"},
		{"comments", "# nothing\n", "the file is empty; it needs rules or phases"},
		{"no YAML", "rules:\n  - lag: [1\n", "line 2, column 10: this is not YAML: "},
		{"a list", "- lag: 1s\n", `line 1, column 1: a schedule consists of names with values, as in "lag: 100ms"`},
		{"neither", "repeat: true\n", "line 1, column 7: there are neither rules nor phases"},
		{"both", "rules: []\nphases: []\n", "line 2, column 1: there are rules for the whole run and phases; only one of the two can be"},
		{"repeated rules", "rules:\n  - lag: 1s\nrepeat: true\n", "line 3, column 1: only phases can be repeated"},
		{"unknown", "rule:\n  - lag: 1s\n", "line 1, column 1: a schedule has no rule; it may have rules, phases, repeat"},
		{"unknown setting", "rules:\n  - filter: udp\n    lagg: 1s\n", "line 3, column 5: a rule has no lagg; it may have burst, corrupt, "},
		{"unknown in a phase", "phases:\n  - fro: 1s\n", "line 2, column 5: a phase has no fro; it may have name, for, rules"},
		{"no list", "rules:\n  lag: 1s\n", "line 1, column 1: rules must be a list: each element begins with a dash"},
		{"twice", "rules:\n  - lag: 1s\n    lag: 2s\n", "line 3, column 5: "},
		{"share", "rules:\n  - loss: 150%\n", "line 2, column 11: loss: 150% is out of range (0% to 100%)"},
		{"share, number", "rules:\n  - loss: 5\n", "line 2, column 11: loss: 5 is out of range (0 to 1, or 0% to 100%)"},
		{"unit", "rules:\n  - lag: 100\n", "line 2, column 10: lag: 100 has no unit: write 100ms for milliseconds or 100s for seconds"},
		{"rate", "rules:\n  - rate: 100\n", "line 2, column 11: rate: takes a rate with its unit: bit, kbit, mbit, gbit, or B/s, kB/s, MB/s, GB/s for bytes"},
		{"null", "rules:\n  - lag:\n", "line 2, column 5: lag needs a value of one word"},
		{"map", "rules:\n  - lag: {a: b}\n", "line 2, column 5: lag needs a value of one word"},
		{"alone", "rules:\n  - loss-run: 3\n", "line 2, column 15: loss-run: it says nothing without loss"},
		{"for", "phases:\n  - for: 1d\n", "line 2, column 10: for takes a time with its unit, as in 30s or 1m30s"},
		{"for, range", "phases:\n  - for: 1us\n", "line 2, column 10: for: 1us is out of range (1ms to 8760h0m0s)"},
		{"no for", "phases:\n  - name: a\n  - for: 1s\n", "line 2, column 9: this phase has no time (for); only the last one may do without"},
		{"no for, repeated", "repeat: true\nphases:\n  - name: a\n", "line 3, column 9: this phase has no time (for), which it needs if the phases are repeated"},
		{"documents", "rules:\n  - lag: 1s\n---\nrules:\n  - lag: 1s\n", "line 4, column "},
		{"deep", "rules: " + strings.Repeat("[", 100_000), "the file nests brackets or dashes deeper than 32"},
		{"long", strings.Repeat(" ", MaxFile+1), "the file is longer than 1048576 bytes"},
		{"bool", "repeat: perhaps\nphases:\n  - for: 1s\n", "line 1, column 9: repeat: takes true or false"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, err := ParseSchedule([]byte(row.text))
			var e *FileError
			if err == nil || !errors.As(err, &e) || !strings.HasPrefix(err.Error(), row.want) {
				t.Errorf("%+v, %v, want %s", s, err, row.want)
			}
		})
	}
}

// The error of a filter includes its place in the file.
func TestFilterInFile(t *testing.T) {
	s, err := ParseSchedule([]byte("rules:\n  - lag: 1s\n    filter: tcq\n"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(Config{Phases: s.Phases})
	if want := `impair: line 3, column 13: filter: column 1: unknown word "tcq"; did you mean TCP or tcp?`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestSettings(t *testing.T) {
	for _, row := range []struct {
		name, text string
		want       Rule
		err        string
	}{
		{"loss", "1%", Rule{Loss: 0.01}, ""},
		{"loss", "0.25", Rule{Loss: 0.25}, ""},
		{"loss", "1e-3 %", Rule{Loss: 1e-5}, ""},
		{"loss", "NaN", Rule{}, "takes a share of the packets, as in 1% or 0.01"},
		{"loss", "", Rule{}, "takes a share of the packets, as in 1% or 0.01"},
		{"loss", "-1%", Rule{}, "-1% is out of range (0% to 100%)"},
		{"loss-run", "0.5", Rule{}, "takes the mean number of packets in a run, 1 to 1e+06"},
		{"rate", "1mbit", Rule{Rate: 1e6}, ""},
		{"rate", "1Mbit/s", Rule{Rate: 1e6}, ""},
		{"rate", "100 kB/s", Rule{Rate: 800_000}, ""},
		{"rate", "9600bit", Rule{Rate: 9600}, ""},
		{"rate", "2B/s", Rule{Rate: 16}, ""},
		{"rate", "1bit", Rule{}, "1bit is out of range (8bit to 1000gbit)"},
		{"rate", "1mb", Rule{}, "takes a rate with its unit: bit, kbit, mbit, gbit, or B/s, kB/s, MB/s, GB/s for bytes"},
		{"burst", "64KiB", Rule{Burst: 65536}, ""},
		{"burst", "0", Rule{}, "takes a number of bytes, as in 3000, 64kB or 1MiB"},
		{"queue", "50", Rule{Queue: Limit{Packets: 50}}, ""},
		{"queue", "64kB,200ms", Rule{Queue: Limit{Bytes: 64_000, Time: 200 * time.Millisecond}}, ""},
		{"queue", "50,many", Rule{}, `"many" is not a limit: write packets as 50, bytes as 64kB, or a time as 200ms`},
		{"queue", "0", Rule{}, `"0" is not a limit: write packets as 50, bytes as 64kB, or a time as 200ms`},
		{"lag", "1.5s", Rule{Lag: 1500 * time.Millisecond}, ""},
		{"lag", "2h", Rule{}, "2h is out of range (0, or 1µs to 1h0m0s)"},
		{"lag", "soon", Rule{}, "takes a time with its unit, as in 100ms or 1.5s"},
		{"direction", "up", Rule{}, "must be one of both, out, in"},
		{"distribution", "pareto", Rule{Distribution: Pareto}, ""},
		{"unordered", "yes", Rule{}, "takes true or false"},
		{"reorder-by", "0", Rule{}, "takes a number of packets, 1 to 1000"},
	} {
		var r Rule
		err := findSetting(row.name).Set(&r, row.text)
		if text := ""; err != nil {
			if text = err.Error(); text != row.err {
				t.Errorf("%s %q: %s, want %s", row.name, row.text, text, row.err)
			}
		} else if row.err != "" || r != row.want {
			t.Errorf("%s %q: %+v", row.name, row.text, r)
		}
	}
	names := map[string]bool{}
	for _, s := range Settings() {
		if names[s.Name] || s.Usage == "" {
			t.Errorf("setting %s", s.Name)
		}
		names[s.Name] = true
	}
}

// Any file is a schedule or gives an error with its place, and a schedule can be opened unless its filters are wrong.
func FuzzParseSchedule(f *testing.F) {
	f.Add([]byte("rules:\n  - lag: 1s\n    filter: udp\n"))
	f.Add([]byte("repeat: true\nphases:\n  - for: 1s\n    rules: [{loss: 1%}]\n"))
	f.Add([]byte("a: &x [*x, !!t y, ? z]\n<<: *x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSchedule(b)
		var wrong *FileError
		if (err == nil) != (s != nil) || err != nil && !errors.As(err, &wrong) {
			t.Fatalf("%v, %v", s, err)
		}
		if err != nil {
			return
		}
		for _, p := range s.Phases {
			for i := range p.Rules {
				if err := p.Rules[i].check(); err != nil {
					t.Errorf("rule %+v: %v", p.Rules[i], err)
				}
			}
		}
	})
}
