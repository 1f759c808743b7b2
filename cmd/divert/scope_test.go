package main

import (
	"net"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/spf13/pflag"
)

// TestScopeErrors misuses each of the flags that commands have in common.
func TestScopeErrors(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"drop -c -1 udp", "--limit -1 is negative"},
		{"drop -c abc udp", `--limit (-c) takes a whole number, not "abc"`},
		{"reject --for -1s udp", "--for -1s is negative"},
		{"passthru --for 30 udp", "--for 30 has no unit: write 30s for seconds or 30ms for milliseconds"},
		{"delay --for soon 1ms udp", `--for takes a time with its unit, as in 500ms or 2s, not "soon"`},
		{"dump -i nothing9 udp", "--interface nothing9: there is no such network interface; there are any"},
		{"impair -i nothing9 --lag 1s udp", "--interface nothing9: there is no such network interface; there are any"},
		{"drop --layer socket -i any true", "--interface applies to packets, but the layer socket has events"},
		{"passthru --layer forward --process 4 true", "--process applies to packets of this host, but those of the layer forward belong to others"},
		{"drop --strict --process 4 true", "--process cannot be combined with --strict: in WinDivert packets have no process"},
		{"sockets --strict --process curl", "--process curl cannot be combined with --strict, which has no sets: give the process id"},
		{"sockets --process= true", "--process needs a process id or a name"},
		{"reject 'processId in @divert.process'", "@divert.process is the set that --process makes; choose another name"},
		{"flows --top -c 3", "--top and --limit cannot be combined: totals have no number of events"},
		{"watch -c -3", "--limit -3 is negative"},
		{"dump -r x --process 4", "--read and --process cannot be combined"},
		{"proxy --to 127.0.0.1:80 --for -1s tcp", "--for -1s is negative"},
		{"dump --layr network", "divert dump has no flag --layr; did you mean --layer?"},
		{"dump --priority 99999", "--priority 99999 is out of range (-30000 to 30000)"},
		{"dump --queue-time 5", "--queue-time 5 has no unit: write 5s for seconds or 5ms for milliseconds"},
	} {
		if r := runCommand(t, "", words(test.args)...); r.status != exitUsage || !strings.HasPrefix(r.errout, "divert: "+test.want) {
			t.Errorf("%s: status %d: %s", test.args, r.status, r.errout)
		}
	}
}

// TestScopeEverywhere expects the flags at every command that should have them, with the same letters.
func TestScopeEverywhere(t *testing.T) {
	letter := map[string]string{"interface": "i", "limit": "c"}
	for command, flags := range map[string]string{
		"dump": "interface process for limit priority layer", "drop": "interface process for limit priority layer",
		"reject": "interface process for limit priority layer", "passthru": "interface process for limit priority layer",
		"impair": "interface process for limit priority layer", "delay": "interface process for limit priority layer",
		"sockets": "process for limit priority", "flows": "process for limit priority", "watch": "for limit", "proxy": "for priority",
	} {
		c, _, err := (&app{}).newRoot().Find([]string{command})
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(flags) {
			f := c.Flags().Lookup(name)
			if f == nil || f.Shorthand != letter[name] {
				t.Errorf("%s --%s: %+v", command, name, f)
			}
		}
		seen := map[string]bool{}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Shorthand != "" && seen[f.Shorthand] {
				t.Errorf("%s has -%s twice", command, f.Shorthand)
			}
			seen[f.Shorthand] = true
		})
	}
}

func TestScopeNarrows(t *testing.T) {
	loopback := loopbackIndex(t)
	lo := `iface == "lo"`
	if runtime.GOOS != "linux" {
		lo = "ifIdx == " + loopback
	}
	for _, test := range []struct {
		args  string
		layer divert.Layer
		want  string
	}{
		{"udp", divert.LayerNetwork, "udp"},
		{"-i any udp", divert.LayerNetwork, "udp"},
		{"-i lo udp or tcp", divert.LayerNetwork, "(" + lo + ") and (udp or tcp)"},
		{"-i lo,lo true", divert.LayerForward, lo + " or " + lo},
		{"-i " + loopback + " udp", divert.LayerNetwork, "(ifIdx == " + loopback + ") and (udp)"},
		{"--process 4 udp", divert.LayerNetwork, "(processId == 4) and (udp)"},
		{"--process 4 --process 5", divert.LayerNetwork, "processId == 4 or processId == 5"},
		{"--process 4 --process curl tcp", divert.LayerNetwork, `(processId == 4 or processId in @divert.process or process == "curl") and (tcp)`},
		{"--process fifteen-bytes-and-more", divert.LayerFlow, `processId in @divert.process or process == "fifteen-bytes-a"`},
		{"-i lo --process curl", divert.LayerNetwork, "(" + lo + `) and (processId in @divert.process or process == "curl")`},
	} {
		var f handleFlags
		f.layers = []divert.Layer{test.layer}
		fl := pflag.NewFlagSet("", pflag.ContinueOnError)
		fl.StringArrayVarP(&f.scope.interfaces, "interface", "i", nil, "")
		fl.StringArrayVar(&f.scope.processes, "process", nil, "")
		if err := fl.Parse(words(test.args)); err != nil {
			t.Fatal(err)
		}
		text, p, err := f.program(fl.Args())
		if err != nil || text != test.want || p == nil {
			t.Errorf("%s: %q, %v, want %q", test.args, text, err, test.want)
		}
	}
	// An object string cannot be put in parentheses.
	p, err := filter.Compile("udp", divert.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	object, err := p.Object()
	if err != nil {
		t.Fatal(err)
	}
	if text, err := narrow(object, p, []string{"inbound"}); text != "(inbound) and (udp)" {
		t.Errorf("an object: %q, %v", text, err)
	}
}

// loopbackIndex returns the index of the interface lo, or skips where it is missing.
func loopbackIndex(t *testing.T) string {
	i, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skip(err)
	}
	return strconv.Itoa(i.Index)
}

func TestAges(t *testing.T) {
	for age, want := range map[time.Duration]string{
		-time.Second: "now", 0: "now", 999 * time.Millisecond: "now", 3 * time.Second: "3s ago", 59 * time.Second: "59s ago",
		60 * time.Second: "1m ago", 61 * time.Second: "1m 1s ago", time.Hour: "1h ago", time.Hour + 5*time.Second: "1h ago",
		25*time.Hour + 30*time.Minute: "1d 1h ago",
	} {
		if got := ageText(age); got != want {
			t.Errorf("%v: %q, want %q", age, got, want)
		}
	}
}
