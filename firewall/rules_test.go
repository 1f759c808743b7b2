package firewall

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/packet"
	"github.com/opendivert/divert/process"
)

// conn describes a connection in few words.
func conn(outbound bool, protocol uint8, local, remote string) Conn {
	return Conn{
		Outbound: outbound, Protocol: protocol, Hello: true,
		Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote),
		Time: time.Date(2026, 9, 7, 12, 0, 0, 0, time.UTC), // a Monday
	}
}

func (c Conn) with(f func(*Conn)) Conn { f(&c); return c }

func mustParse(t testing.TB, text string) *Rules {
	t.Helper()
	r, err := Parse([]byte(text), folder(t))
	if err != nil {
		var wrong *FileError
		if errors.As(err, &wrong) {
			t.Fatalf("%v\n%s\n%s", err, wrong.Snippet(), text)
		}
		t.Fatalf("%v\n%s", err, text)
	}
	return r
}

func TestDecide(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(folder(t), "link")
	if err := os.Symlink(self, link); err != nil {
		t.Skip(err)
	}
	other := filepath.Join(folder(t), "other")
	if err := os.WriteFile(other, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	web := conn(true, protocolTCP, "10.0.0.1:40000", "192.0.2.7:443")
	in := conn(false, protocolTCP, "10.0.0.1:22", "192.0.2.7:50000")
	dns := conn(true, protocolUDP, "[fd00::1]:5000", "[2001:db8::53]:53")
	ping := conn(true, protocolICMP, "10.0.0.1:0", "192.0.2.7:0")
	of := func(path string) func(*Conn) {
		return func(c *Conn) {
			c.Program.Process = process.Process{ID: 7, Name: "curl", User: "alice", UID: 1000, Executable: path, File: fileOf(path)}
			c.Program.Parent = process.Process{ID: 6, Executable: other, File: fileOf(other)}
		}
	}
	named := func(names ...string) func(*Conn) { return func(c *Conn) { c.Names = names } }
	hello := func(name string) func(*Conn) { return func(c *Conn) { c.ServerName = name } }
	waiting := func(c *Conn) { c.Hello = false }
	at := func(day int, clock string) func(*Conn) {
		return func(c *Conn) {
			v, err := time.Parse("15:04", clock)
			if err != nil {
				panic(err)
			}
			c.Time = time.Date(2026, 9, day, v.Hour(), v.Minute(), 0, 0, time.UTC)
		}
	}
	for _, tt := range []struct {
		name  string
		rules string // after default: deny
		conn  Conn
		want  Action
		rule  int
	}{
		{"no rule", "", web, Deny, 0},
		{"a rule for all", "- action: allow", web, Allow, 1},
		{"the first that matches", "- {action: reject, port: 443}\n- {action: allow}", web, Reject, 1},
		{"the second", "- {action: reject, port: 80}\n- {action: allow}", web, Allow, 2},
		{"ask", "- {action: ask, direction: out}", web, Ask, 1},
		{"direction out", "- {action: allow, direction: out}", in, Deny, 0},
		{"direction in", "- {action: allow, direction: in}", in, Allow, 1},
		{"direction in, of one out", "- {action: allow, direction: in}", web, Deny, 0},
		{"protocol", "- {action: allow, protocol: [udp, icmp]}", ping, Allow, 1},
		{"protocol by number", "- {action: allow, protocol: 17}", dns, Allow, 1},
		{"another protocol", "- {action: allow, protocol: udp}", web, Deny, 0},
		{"port of the side called, out", "- {action: allow, port: 443}", web, Allow, 1},
		{"port of the side called, in", "- {action: allow, port: 22}", in, Allow, 1},
		{"port of the other side", "- {action: allow, port: 50000}", in, Deny, 0},
		{"range of ports", "- {action: allow, port: [80, 400-500]}", web, Allow, 1},
		{"behind a range", "- {action: allow, port: 400-442}", web, Deny, 0},
		{"remote port", "- {action: allow, remote-port: 50000}", in, Allow, 1},
		{"local port", "- {action: allow, local-port: 40000}", web, Allow, 1},
		{"ports of what has none", "- {action: allow, port: 0-65535}", ping, Deny, 0},
		{"address", "- {action: allow, address: 192.0.2.7}", web, Allow, 1},
		{"network", "- {action: allow, address: [198.51.100.0/24, 192.0.2.0/29]}", web, Allow, 1},
		{"range of addresses", "- {action: allow, address: 192.0.2.1-192.0.2.6}", web, Deny, 0},
		{"address of IPv6", "- {action: allow, address: \"2001:db8::/32\"}", dns, Allow, 1},
		{"a set", "- {action: allow, address: ['@doc', 203.0.113.1]}", web, Allow, 1},
		{"an address beside a set", "- {action: allow, address: ['@doc', 203.0.113.1]}", web.with(func(c *Conn) {
			c.Remote = netip.MustParseAddrPort("203.0.113.1:1")
		}), Allow, 1},
		{"neither", "- {action: allow, address: ['@doc', 203.0.113.1]}", dns, Deny, 0},
		{"local address", "- {action: allow, local-address: 10.0.0.0/8}", web, Allow, 1},
		{"another local address", "- {action: allow, local-address: 10.0.0.0/8}", dns, Deny, 0},
		{"program", "- {action: allow, program: " + self + "}", web.with(of(self)), Allow, 1},
		{"program by a link", "- {action: allow, program: " + link + "}", web.with(of(self)), Allow, 1},
		{"another program", "- {action: allow, program: " + other + "}", web.with(of(self)), Deny, 0},
		{"one that says it is the program", "- {action: allow, program: " + self + "}", web.with(of(other)).with(func(c *Conn) {
			c.Program.Process.Executable = self // as in a container with a file of its own there
		}), Deny, 0},
		{"a program that is not there", "- {action: allow, program: /no/such/program}", web.with(of(self)), Deny, 0},
		{"a program unknown", "- {action: allow, program: " + self + "}", web, Deny, 0},
		{"parent", "- {action: allow, parent: " + other + "}", web.with(of(self)), Allow, 1},
		{"another parent", "- {action: allow, parent: " + self + "}", web.with(of(self)), Deny, 0},
		{"process", "- {action: allow, process: [wget, curl]}", web.with(of(self)), Allow, 1},
		{"another process", "- {action: allow, process: wget}", web.with(of(self)), Deny, 0},
		{"user by number", "- {action: allow, user: 1000}", web.with(of(self)), Allow, 1},
		{"root", "- {action: allow, user: root}", web.with(of(self)), Deny, 0},
		{"the unknown are not root", "- {action: allow, user: 0}", web, Deny, 0},
		{"host", "- {action: allow, host: www.Example.com}", web.with(named("other.example", "www.example.com")), Allow, 1},
		{"host below", "- {action: allow, host: \"*.example.com\"}", web.with(named("a.b.example.com")), Allow, 1},
		{"host below is not itself", "- {action: allow, host: \"*.example.com\"}", web.with(named("example.com")), Deny, 0},
		{"host and below", "- {action: allow, host: .example.com}", web.with(named("example.com")), Allow, 1},
		{"host with the same end", "- {action: allow, host: .example.com}", web.with(named("badexample.com")), Deny, 0},
		{"host unknown", "- {action: allow, host: example.com}", web, Deny, 0},
		{"host by the hello", "- {action: allow, host: example.com}", web.with(hello("example.com")), Allow, 1},
		{"host before the hello", "- {action: allow, host: example.com}", web.with(waiting), Look, 0},
		{"host before the hello, by DNS", "- {action: allow, host: example.com}", web.with(waiting).with(named("example.com")), Allow, 1},
		{"the hello makes no difference", "- {action: deny, host: example.com}", web.with(waiting), Deny, 0},
		{"host before the hello of QUIC", "- {action: allow, host: example.com}", dns.with(waiting), Look, 0},
		{"no hello with ICMP", "- {action: allow, host: example.com}", dns.with(waiting).with(func(c *Conn) { c.Protocol = protocolICMP }), Deny, 0},
		{"host on another port", "- {action: allow, host: example.com, port: 80}", web.with(waiting), Deny, 0},
		{"server name", "- {action: allow, server-name: example.com}", web.with(hello("example.com")), Allow, 1},
		{"server name is not DNS", "- {action: allow, server-name: example.com}", web.with(named("example.com")), Deny, 0},
		{"an earlier rule is sure", "- {action: allow, port: 443}\n- {action: reject, host: example.com}", web.with(waiting), Allow, 1},
		{"a later one is not", "- {action: reject, host: example.com}\n- {action: allow, port: 443}", web.with(waiting), Look, 0},
		{"log goes on", "- {action: log}\n- {action: allow}", web, Allow, 2},
		{"time", "- {action: allow, time: 08:00-17:30}", web, Allow, 1},
		{"before the time", "- {action: allow, time: 08:00-17:30}", web.with(at(7, "07:59")), Deny, 0},
		{"the end of the time", "- {action: allow, time: 08:00-17:30}", web.with(at(7, "17:30")), Deny, 0},
		{"until midnight", "- {action: allow, time: 18:00-24:00}", web.with(at(7, "23:59")), Allow, 1},
		{"over midnight, before", "- {action: allow, time: 22:00-06:00, days: mon}", web.with(at(7, "22:00")), Allow, 1},
		{"over midnight, behind", "- {action: allow, time: 22:00-06:00, days: mon}", web.with(at(8, "05:59")), Allow, 1},
		{"over midnight, of the day before", "- {action: allow, time: 22:00-06:00, days: mon}", web.with(at(7, "05:59")), Deny, 0},
		{"days", "- {action: allow, days: [sat, mon-wed]}", web, Allow, 1},
		{"other days", "- {action: allow, days: fri-sun}", web, Deny, 0},
		{"days over the end of the week", "- {action: allow, days: sat-mon}", web, Allow, 1},
		{"all conditions", "- {action: allow, port: 443, protocol: tcp, direction: out, address: 192.0.2.0/24, user: 1001}", web.with(of(self)), Deny, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := "default: deny\n"
			if strings.Contains(tt.rules, "@doc") {
				text += "sets: {doc: [192.0.2.0/24]}\n"
			}
			if tt.rules != "" {
				text += "rules:\n" + tt.rules + "\n"
			}
			r := mustParse(t, text)
			d := r.Decide(&tt.conn)
			if d.Action != tt.want || d.Rule != tt.rule {
				t.Errorf("%v by rule %d, want %v by rule %d", d.Action, d.Rule, tt.want, tt.rule)
			}
		})
	}
}

func TestDecisionLogs(t *testing.T) {
	web := conn(true, protocolTCP, "10.0.0.1:40000", "192.0.2.7:443")
	for _, tt := range []struct {
		rules  string
		log    bool
		logged string
	}{
		{"default: allow", false, "[]"},
		{"default: deny", true, "[]"},
		{"default: allow\nlog: all", true, "[]"},
		{"default: deny\nlog: rules", false, "[]"},
		{"default: allow\nrules: [{action: allow, log: yes}]", true, "[]"},
		{"default: allow\nlog: rules\nrules: [{action: deny, log: yes}]", true, "[]"},
		{"default: allow\nrules: [{action: log}, {action: log, port: 80}, {action: log}]", false, "[1 3]"},
	} {
		d := mustParse(t, tt.rules).Decide(&web)
		if d.Log != tt.log || fmt.Sprint(d.Logged) != tt.logged {
			t.Errorf("%s: %+v", tt.rules, d)
		}
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	r := mustParse(t, "default: deny\nrules:\n- {action: reject, host: .example.com}\n- {action: allow, port: 443, time: 08:00-17:00, address: 192.0.2.0/24}")
	c := conn(true, protocolTCP, "10.0.0.1:40000", "192.0.2.7:443")
	c.Names = []string{"a.example.org"}
	if n := testing.AllocsPerRun(100, func() { r.Decide(&c) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// Errors in a file come with their place; the caret stands under it.
func TestFileErrors(t *testing.T) {
	for _, tt := range []struct{ file, at, text string }{
		{"", "", "the file is empty"},
		{"default: deny\n\tx: 1", "", "not YAML"},
		{"[", "", "not YAML"},
		{"- a", "", "consists of names"},
		{"rules: []", "rules", "default: allow, deny"},
		{"default: drop", "drop", `"drop" cannot be used here; use one of allow, deny, reject, ask`},
		{"default: log", "log", "cannot be used here"},
		{"default: deny\ndefalt: x", "defalt", "a file of rules has no defalt; it may have default"},
		{"default: deny\ndefault: deny", "default", ""},
		{"default: deny\non-death: never", "never", "open or closed"},
		{"default: deny\nlog: some", "some", "denied, all or rules"},
		{"default: deny\nask: {timeout: 2h}", "2h", "1s to 1m0s"},
		{"default: deny\nask: {default: ask}", "ask}", "cannot be used here"},
		{"default: deny\nask: {who: me}", "who", "ask has no who"},
		{"default: deny\nresolvers: nine", "nine", "not an address"},
		{"default: deny\nsets: {a b: [10.0.0.0/8]}", "a b", "not the name of a set"},
		{"default: deny\nsets: {a: [10.0.0.0/8]}", "a:", "no rule names the set @a"},
		{"default: deny\nsets: {a: [10.0.0.0/33]}", "10.0.0.0/33", "not a prefix"},
		{"default: deny\nsets: {a: [80]}", "80]", "not an address"},
		{"default: deny\nsets: {a: {file: no-such-file}}", "no-such-file", "no-such-file"},
		{"default: deny\nsets: {a: {path: x}}", "{path", "the file that has them"},
		{"default: deny\nrules: {action: allow}", "{action", "must be a list"},
		{"default: deny\nrules:\n  - port: 80", "port", "the rule has no action"},
		{"default: deny\nrules:\n  - action: drop", "drop", "allow, deny, reject, log, ask"},
		{"default: deny\nrules:\n  - action: allow\n    prot: 80", "prot", "a rule has no prot; it may have name"},
		{"default: deny\nrules:\n  - {action: allow, port: [80, 99999]}", "99999", "not a port"},
		{"default: deny\nrules:\n  - {action: allow, port: 90-80}", "90-80", "not a port"},
		{"default: deny\nrules:\n  - {action: allow, port: []}", "port", "empty list"},
		{"default: deny\nrules:\n  - action: allow\n    port:", "port", "no value"},
		{"default: deny\nrules:\n  - {action: allow, port: {a: b}}", "", "one value"},
		{"default: deny\nrules:\n  - {action: allow, protocol: http}", "http", "not a protocol"},
		{"default: deny\nrules:\n  - {action: allow, protocol: icmp, port: 80}", "{action", "never matches"},
		{"default: deny\nrules:\n  - {action: allow, protocol: [icmp, sctp], server-name: a.example}", "{action", "never matches"},
		{"default: deny\nrules:\n  - {action: allow, address: '@lan'}", "'@lan'", "there is no set lan"},
		{"default: deny\nrules:\n  - {action: allow, address: example.com}", "example.com", ""},
		{"default: deny\nrules:\n  - {action: allow, host: a..b}", "a..b", "not a host name"},
		{"default: deny\nrules:\n  - {action: allow, host: bücher.example}", "bücher", "xn--"},
		{"default: deny\nrules:\n  - action: allow\n    host: *.example.com", "", ""},
		{"default: deny\nrules:\n  - {action: allow, program: curl}", "curl", "not the full path"},
		{"default: deny\nrules:\n  - {action: allow, user: no-such-user-here}", "no-such-user-here", "there is no user"},
		{"default: deny\nrules:\n  - {action: allow, time: 8-17}", "8-17", "not a part of a day"},
		{"default: deny\nrules:\n  - {action: allow, time: 08:00-08:00}", "08:00-08:00", "not a part of a day"},
		{"default: deny\nrules:\n  - {action: allow, days: monday}", "monday", "not a day"},
		{"default: deny\nrules:\n  - {action: allow, name: a}\n  - {action: deny, name: a}", "{action: deny", `two rules with the name "a"`},
		{"default: deny\n---\ndefault: deny", "", "a second document"},
		{"default: deny\nrules: " + strings.Repeat("[", 40) + strings.Repeat("]", 40), "", "nests"},
	} {
		_, err := Parse([]byte(tt.file), folder(t))
		var wrong *FileError
		if !errors.As(err, &wrong) {
			t.Errorf("%q: %v", tt.file, err)
			continue
		}
		if !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%q: %v; it does not say %q", tt.file, err, tt.text)
		}
		if tt.at == "" {
			continue
		}
		text, caret, ok := strings.Cut(wrong.Snippet(), "\n")
		runes := []rune(text)
		if !ok || !strings.HasPrefix(string(runes[min(len(caret)-1, len(runes)):]), tt.at) {
			t.Errorf("%q: the caret is not under %q: %v\n%s", tt.file, tt.at, err, wrong.Snippet())
		}
	}
}

func TestLoad(t *testing.T) {
	dir := folder(t)
	path, list := filepath.Join(dir, "rules.yaml"), filepath.Join(dir, "list.txt")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(path, "default: allow\nsets:\n  bad: {file: list.txt}\nrules:\n  - {action: deny, address: '@bad', name: the bad}\n")
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path+":3:15: ") {
		t.Errorf("without the list: %v", err)
	}
	write(list, "192.0.2.0/24 # documentation\n")
	r, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	c := conn(true, protocolTCP, "10.0.0.1:40000", "192.0.2.7:443")
	if d := r.Decide(&c); d.Action != Deny || r.Name(d.Rule) != "the bad" || r.Name(0) != "default" {
		t.Errorf("%+v", d)
	}
	if r.Changed() {
		t.Error("changed already")
	}
	write(list, "192.0.2.0/24\nnonsense\n")
	if !r.Changed() {
		t.Error("not changed")
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a bad line: %v", err)
	}
	if err := os.Remove(list); err != nil {
		t.Fatal(err)
	}
	if !r.Changed() {
		t.Error("not changed when it is gone")
	}
	if _, err := Load(dir); err == nil {
		t.Error("a folder was read")
	}
}

// The filter at connect matches only where the decision is reject, whatever is still unknown, and covers all rules about
// addresses and ports.
func TestConnectFilter(t *testing.T) {
	for _, tt := range []struct {
		rules string
		want  string // the filter, "" for none
	}{
		{"default: deny", ""},
		{"default: reject", "not loopback and event == CONNECT and (true)"},
		{"default: reject\nloopback: yes", "event == CONNECT and (true)"},
		{"default: allow\nrules: [{action: deny}]", ""},
		{"default: allow\nrules: [{action: reject, direction: in}]", ""},
		{"default: allow\nrules: [{action: reject, user: 0}]", ""},
		{"default: reject\nrules: [{action: allow, user: 0}]", ""},
		{"default: reject\nrules: [{action: reject, user: 0}]", "not loopback and event == CONNECT and (true)"},
		{"default: reject\nrules: [{action: allow, direction: in}]", "not loopback and event == CONNECT and (true)"},
	} {
		if got, _ := mustParse(t, tt.rules).connectFilter(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.rules, got, tt.want)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) string { return from[random.IntN(len(from))] }
	refused := 0
	for range 300 {
		text := "default: " + pick("allow", "reject", "deny") + "\nrules:\n"
		for range random.IntN(5) + 1 {
			text += "- {action: " + pick("allow", "deny", "reject", "reject", "ask", "log") +
				pick("", ", direction: out", ", direction: in") + pick("", ", protocol: tcp", ", protocol: [udp, icmp]") +
				pick("", ", address: 192.0.2.0/24", ", address: [192.0.2.7, \"2001:db8::/32\"]") + pick("", ", user: 0", ", host: a.example", ", time: 08:00-09:00", ", local-port: 1") + "}\n"
			if strings.Contains(text, "protocol: [udp, icmp]") || random.IntN(2) == 0 {
				text = strings.TrimSuffix(text, "}\n") + pick(", port: 443", ", remote-port: [53, 400-500]") + "}\n"
			}
		}
		r := mustParse(t, text)
		p, err := r.compileConnect()
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		for _, remote := range []string{"192.0.2.7:443", "192.0.2.8:53", "198.51.100.1:443", "[2001:db8::1]:444", "198.51.100.1:1"} {
			for _, protocol := range []uint8{protocolTCP, protocolUDP} {
				c := conn(true, protocol, "10.0.0.1:1", remote)
				var a packet.Address
				a.Layer, a.Event, a.Outbound = packet.LayerSocket, packet.EventSocketConnect, true
				a.SetFlow(packet.FlowData{RemoteAddr: c.Remote.Addr(), RemotePort: c.Remote.Port(), Protocol: protocol})
				if p == nil {
					continue
				}
				if !p.Match(nil, &a) {
					continue
				}
				refused++
				for _, more := range []func(*Conn){
					func(*Conn) {},
					func(c *Conn) { c.Program.Process = process.Process{ID: 1} },
					func(c *Conn) { c.Names = []string{"a.example"} },
					func(c *Conn) { c.Time = c.Time.Add(-210 * time.Minute) },
				} {
					c := c
					more(&c)
					if d := r.Decide(&c); d.Action != Reject {
						t.Fatalf("%v to %s is refused at connect, and the rules say %v\n%s", protocol, remote, d.Action, text)
					}
				}
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("default: deny\non-death: closed\nask: {timeout: 5s, default: allow}\nsets: {a: [10.0.0.0/8]}\nrules:\n- {action: log, address: '@a', host: .b, time: 08:00-09:00}\n- action: reject\n  port: [80, 1-2]\n"))
	f.Add([]byte("default: *a\nrules: &a [1, [2]]"))
	f.Add([]byte("default: deny\nrules:\n- user: |\n    x\n  <<: {}"))
	c := conn(true, protocolTCP, "10.0.0.1:40000", "10.0.0.2:443")
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b, "no such folder")
		if err != nil {
			var wrong *FileError
			if !errors.As(err, &wrong) || err.Error() == "" {
				t.Fatalf("%T %v", err, err)
			}
			wrong.Snippet()
			return
		}
		if d := r.Decide(&c); d.Rule < 0 || d.Rule > r.Len() || d.Action == Log {
			t.Fatalf("%+v", d)
		}
		if _, err := r.compileConnect(); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	list := filepath.Join(b.TempDir(), "list.txt")
	var text strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&text, "%d.%d.%d.0/24\n", 20+i%100, i/100, i%7)
	}
	if err := os.WriteFile(list, []byte(text.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	r, err := Parse([]byte("default: deny\nsets: {big: {file: "+list+"}}\nrules:\n- {action: reject, address: '@big'}\n- {action: allow, port: 443}"), "")
	if err != nil {
		b.Fatal(err)
	}
	c := conn(true, protocolTCP, "10.0.0.1:40000", "10.0.0.2:443")
	b.ReportAllocs()
	for b.Loop() {
		if d := r.Decide(&c); d.Action != Allow {
			b.Fatal(d)
		}
	}
}
