package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/opendivert/divert/firewall"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/quicinitial"
	"github.com/opendivert/divert/internal/quicinitial/quictest"
)

// firewallOn starts the firewall on a host with rules from a file, and returns that file's path too.
func firewallOn(t *testing.T, h *lab.Host, rules string, args ...string) (p *running, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "rules.yaml")
	writeRules(t, path, rules)
	all := append([]string{"firewall", "run", "--json", "--socket", filepath.Join(t.TempDir(), "socket")}, args...)
	return start(t, h, append(all, path)...), path
}

func writeRules(t *testing.T, path, rules string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tcpEcho runs a TCP echo server on both addresses of a host.
func tcpEcho(t *testing.T, h *lab.Host, ports ...int) {
	t.Helper()
	for _, a := range h.Addrs() {
		for _, port := range ports {
			e, err := h.Echo("tcp", netip.AddrPortFrom(a, uint16(port)).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = e.Close() })
		}
	}
}

// The outcomes of a connection.
const (
	works     = "works"
	isRefused = "refused"
	silent    = "silent"
)

// try connects, and sends a few bytes there and back. A connection without any answer within wait is silent.
func try(h *lab.Host, to netip.AddrPort, wait time.Duration) string {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", to.String())
	if err != nil {
		return failure(err)
	}
	defer c.Close()
	return echo(c, wait)
}

// echo sends a few bytes there and back.
func echo(c net.Conn, wait time.Duration) string {
	_ = c.SetDeadline(time.Now().Add(wait))
	b := []byte("divert")
	if _, err := c.Write(b); err != nil {
		return failure(err)
	}
	if _, err := c.Read(b); err != nil {
		return failure(err)
	}
	return works
}

func failure(err error) string {
	var late net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return isRefused
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &late) && late.Timeout():
		return silent
	}
	return err.Error()
}

// patience limits a connection that is expected to work or to be refused; shortly is how long a test waits for one that
// is dropped.
const (
	patience = 20 * time.Second
	shortly  = 300 * time.Millisecond
)

// decisions returns the decisions in a run's output.
func decisions(t *testing.T, out string) (list []firewall.Event) {
	t.Helper()
	for line := range strings.Lines(out) {
		var e firewall.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		list = append(list, e)
	}
	return list
}

// firewallCounts returns the summary of a run.
func firewallCounts(t *testing.T, p *running) (s firewallSummary) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(p.errout.String()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil || s.Event != "firewall-summary" {
		t.Fatalf("%v: %s", err, p.errout)
	}
	return s
}

// Each connection gets the fate that the rules give it. DIVERT_TEST_CONNECTIONS is the number of connections, 60 by
// default.
func TestFirewallLive(t *testing.T) {
	count := 60
	if n, err := strconv.Atoi(os.Getenv("DIVERT_TEST_CONNECTIONS")); err == nil {
		count = n
	}
	eachEngine(t, func(t *testing.T, engine string) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		tcpEcho(t, pair.B, 7001, 7002, 7003, 7004, 7005)
		tcpEcho(t, pair.A, 8001, 8002, 8003)
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		whose := "port: 7004"
		if engine == "auto" && needProcesses() == nil {
			whose = "program: " + self + ", port: 7004"
		}
		rules := "default: deny\nlog: all\nrules:\n" +
			"- {name: good, action: allow, direction: out, protocol: tcp, port: 7001, address: ['10.77.0.0/24', \"fd77::/64\"]}\n" +
			"- {name: refused, action: reject, direction: out, port: 7003}\n" +
			"- {name: mine, action: allow, " + whose + "}\n" +
			"- {name: another's, action: allow, local-address: 192.0.2.1, port: 7005}\n" +
			"- {name: served, action: allow, direction: in, port: 8001}\n" +
			"- {name: not served, action: reject, direction: in, port: 8003}\n"
		p, _ := firewallOn(t, pair.A, rules, "--engine", engine)
		// If this user cannot make the device for answers to the host itself, only connect is refused.
		refusal := isRefused
		if tunMissing() != nil && (engine != "auto" || needProcesses() != nil) {
			refusal = silent
		}
		rows := []struct {
			from, to *lab.Host
			port     uint16
			want     string
		}{
			{pair.A, pair.B, 7001, works}, {pair.A, pair.B, 7002, silent}, {pair.A, pair.B, 7003, refusal}, {pair.A, pair.B, 7004, works},
			{pair.A, pair.B, 7005, silent}, {pair.B, pair.A, 8001, works}, {pair.B, pair.A, 8002, silent}, {pair.B, pair.A, 8003, isRefused},
		}
		var wait sync.WaitGroup
		slots := make(chan struct{}, 50)
		for i := range count {
			row := rows[i%len(rows)]
			for _, a := range []netip.Addr{row.to.Addr4(), row.to.Addr6()} {
				wait.Go(func() {
					slots <- struct{}{}
					defer func() { <-slots }()
					patient := patience
					if row.want == silent {
						patient = shortly
					}
					if got := try(row.from, netip.AddrPortFrom(a, row.port), patient); got != row.want {
						t.Errorf("%v to %v: %s, want %s", row.from, netip.AddrPortFrom(a, row.port), got, row.want)
					}
				})
			}
		}
		wait.Wait()
		out, status := p.end(t, os.Interrupt)
		if status != 0 {
			t.Errorf("status %d: %s", status, p.errout)
		}
		atConnect := 0
		for _, e := range decisions(t, out) {
			port, want := e.Remote.Port(), map[uint16]firewall.Action{7001: firewall.Allow, 7002: firewall.Deny, 7003: firewall.Reject, 7004: firewall.Allow, 7005: firewall.Deny}
			if e.Direction == "in" {
				port, want = e.Local.Port(), map[uint16]firewall.Action{8001: firewall.Allow, 8002: firewall.Deny, 8003: firewall.Reject}
			}
			if a, ok := want[port]; !ok && (e.Protocol == 6) || ok && a != e.Action {
				t.Errorf("%+v", e)
			}
			if e.At == "connect" {
				atConnect++
			}
			if whose != "port: 7004" && e.Direction == "out" && e.PID != uint32(os.Getpid()) && e.Protocol == 6 {
				t.Errorf("process %d, want %d: %+v", e.PID, os.Getpid(), e)
			}
		}
		s := firewallCounts(t, p)
		t.Logf("%+v", s)
		if engine == "auto" && needProcesses() == nil && (atConnect == 0 || s.AtConnect == 0) {
			t.Errorf("nothing was refused at connect: %s", p.errout)
		}
		if tables, err := pair.A.NFTables(); err != nil || len(tables) != 0 {
			t.Errorf("left: %q, %v", tables, err)
		}
	})
}

// Rules are replaced under load, and every connection meets either the old or the new ones. The rules also decide
// existing connections, even those older than the firewall.
func TestFirewallReload(t *testing.T) {
	needTUN(t)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	tcpEcho(t, pair.B, 7001, 7002)
	at := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	var old []net.Conn
	for _, a := range pair.B.Addrs() {
		for _, port := range []uint16{7001, 7002} {
			c, err := pair.A.Dial(t.Context(), "tcp", at(a, port))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
			old = append(old, c)
		}
	}
	const open, shut = "{action: allow, port: 7001}", "{action: reject, port: 7001}"
	p, path := firewallOn(t, pair.A, "default: reject\nrules: ["+open+"]\n")
	check := func(when string, want ...string) {
		t.Helper()
		for i, c := range old {
			if got := echo(c, patience); got != want[i%len(want)] {
				t.Errorf("%s: connection %d: %s, want %s", when, i, got, want[i%len(want)])
			}
		}
	}
	check("older than the firewall", works, isRefused)
	old = []net.Conn{old[0], old[2]}

	// All rules reject 7002; every second set rejects 7001.
	stop, done := make(chan struct{}), make(chan map[string]int)
	for _, a := range pair.B.Addrs() {
		go func() {
			counts := map[string]int{}
			for {
				select {
				case <-stop:
					done <- counts
					return
				default:
				}
				counts["7002 "+try(pair.A, netip.AddrPortFrom(a, 7002), patience)]++
				counts["7001 "+try(pair.A, netip.AddrPortFrom(a, 7001), patience)]++
			}
		}()
	}
	const reloads = 6
	for i := range reloads {
		rules := "default: reject\nrules: [" + shut + "]\n"
		if i%2 == 1 {
			rules = "default: reject\nrules: [" + open + "]\n"
		}
		writeRules(t, path, rules)
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		waitFor(t, p, `"event":"rules"`, i+1)
		if i == reloads-1 {
			break
		}
		want := works
		if i%2 == 0 {
			want = isRefused
		}
		if got := try(pair.A, netip.AddrPortFrom(pair.B.Addr4(), 7001), patience); got != want {
			t.Errorf("reload %d: %s, want %s", i, got, want)
		}
	}
	close(stop)
	for range pair.B.Addrs() {
		counts := <-done
		t.Log(counts)
		if counts["7002 "+isRefused] == 0 || counts["7001 "+isRefused] == 0 || counts["7001 "+works] == 0 || len(counts) != 3 {
			t.Errorf("%v", counts)
		}
	}

	// An error leaves the old rules in force; the file is read without a signal too.
	writeRules(t, path, "default: allow\nrules: [{action: alow}]\n")
	waitFor(t, p, "alow", 1)
	if got := try(pair.A, netip.AddrPortFrom(pair.B.Addr4(), 7002), patience); got != isRefused {
		t.Errorf("after an error: %s", got)
	}
	if !strings.Contains(p.errout.String(), `rules.yaml:2:18: action: \"alow\" cannot be used here`) {
		t.Errorf("the error has no place: %s", p.errout)
	}
	writeRules(t, path, "default: allow\n")
	waitFor(t, p, `"event":"rules"`, reloads+1)
	if got := try(pair.A, netip.AddrPortFrom(pair.B.Addr6(), 7002), patience); got != works {
		t.Errorf("in the end: %s", got)
	}
	if _, status := p.end(t, os.Interrupt); status != 0 {
		t.Errorf("status %d: %s", status, p.errout)
	}
}

// waitFor waits until the command has written a text to standard error n times.
func waitFor(t *testing.T, p *running, text string, n int) {
	t.Helper()
	for begun := time.Now(); strings.Count(p.errout.String(), text) < n; time.Sleep(2 * time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatalf("%q did not appear %d times: %s", text, n, p.errout)
		}
	}
}

// When the firewall is killed, either everything passes or undecided connections stay closed, as the rules require. The
// next firewall removes the remains of the dead one.
func TestFirewallDies(t *testing.T) {
	for _, death := range []string{"open", "closed"} {
		t.Run(death, func(t *testing.T) {
			eachEngine(t, func(t *testing.T, engine string) {
				pair := lab.TwoHostsT(t, lab.LinkOptions{})
				tcpEcho(t, pair.B, 7001, 7002)
				rules := "default: deny\non-death: " + death + "\nrules: [{action: allow, port: 7001}]\n"
				socket := filepath.Join(t.TempDir(), "socket")
				p, path := firewallOn(t, pair.A, rules, "--engine", engine, "--socket", socket)
				if death == "closed" {
					t.Cleanup(func() { _ = firewall.EndGuard(socket + ".guard") })
				}
				kernel := strings.Contains(p.errout.String(), `"engine":"eBPF`)
				there, err := pair.A.Dial(t.Context(), "tcp", netip.AddrPortFrom(pair.B.Addr4(), 7001).String())
				if err != nil {
					t.Fatal(err)
				}
				defer there.Close()
				if got := echo(there, patience); got != works {
					t.Errorf("before: %s", got)
				}
				// Nothing slips through the gap: connections attempted throughout its death succeed only if all may pass.
				stop, slipped := make(chan struct{}), make(chan int)
				if death == "closed" {
					go func() {
						n := 0
						for {
							select {
							case <-stop:
								slipped <- n
								return
							default:
							}
							if try(pair.A, netip.AddrPortFrom(pair.B.Addr6(), 7002), 20*time.Millisecond) == works {
								n++
							}
						}
					}()
				}
				p.end(t, syscall.SIGKILL)
				want := map[string]string{"open": works, "closed": silent}[death]
				var tries sync.WaitGroup
				for _, a := range pair.B.Addrs() {
					for _, port := range []uint16{7001, 7002} {
						tries.Go(func() {
							wait := patience
							if want == silent {
								wait = shortly
							}
							if got := try(pair.A, netip.AddrPortFrom(a, port), wait); got != want {
								t.Errorf("after the firewall died, to %v port %d: %s, want %s", a, port, got, want)
							}
						})
					}
				}
				tries.Wait()
				if death == "closed" {
					close(stop)
					if n := <-slipped; n > 0 {
						t.Errorf("%d connections slipped through", n)
					}
				}
				if kernel { // with the interpreter, the process that decides is dead
					if got := echo(there, patience); got != works {
						t.Errorf("a connection decided before: %s", got)
					}
				}
				p = start(t, pair.A, "firewall", "run", "--json", "--socket", socket, "--engine", engine, path)
				if got := try(pair.A, netip.AddrPortFrom(pair.B.Addr6(), 7001), patience); got != works {
					t.Errorf("with the next firewall: %s", got)
				}
				if got := try(pair.A, netip.AddrPortFrom(pair.B.Addr6(), 7002), shortly); got != silent {
					t.Errorf("with the next firewall, a denied connection: %s", got)
				}
				if _, status := p.end(t, os.Interrupt); status != 0 {
					t.Errorf("status %d: %s", status, p.errout)
				}
				if got := try(pair.A, netip.AddrPortFrom(pair.B.Addr4(), 7002), patience); got != works {
					t.Errorf("after an orderly end: %s", got)
				}
				if tables, err := pair.A.NFTables(); err != nil || len(tables) != 0 {
					t.Errorf("left: %q, %v", tables, err)
				}
			})
		})
	}
}

// A person answers in a terminal, or does not; strangers get no access.
func TestFirewallAsk(t *testing.T) {
	needTUN(t)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	tcpEcho(t, pair.B, 7001, 7002, 7003, 7004)
	socket := filepath.Join(t.TempDir(), "socket")
	rules := func(timeout string) string {
		return "default: ask\nask: {timeout: " + timeout + ", default: reject}\nrules: [{action: allow, port: 7004}]\n"
	}
	p, path := firewallOn(t, pair.A, rules("1m"), "--socket", socket)
	to := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(pair.B.Addr4(), port) }
	if got := try(pair.A, to(7001), patience); got != isRefused {
		t.Errorf("with nobody to ask: %s", got)
	}
	if r := runCommand(t, "", "firewall", "run", "--socket", socket, os.DevNull); r.status != exitUsage && r.status != exitFailed {
		t.Errorf("a second firewall: %+v", r)
	}
	a := askOn(t, socket)
	results := make(chan string)
	ask := func(port uint16, answer, want string) {
		t.Helper()
		wait := patience
		if want == silent {
			wait = 5 * shortly
		}
		go func() { results <- try(pair.A, to(port), wait) }()
		if answer != "-" { // remembered
			a.waitFor(t, fmt.Sprintf(":%d", port))
		}
		if answer != "" && answer != "-" {
			a.answer(t, answer)
		}
		if got := <-results; got != want {
			t.Errorf("%s for port %d: %s, want %s", answer, port, got, want)
		}
	}
	ask(7001, "allow", works)
	ask(7002, "d", silent)
	ask(7003, "reject", isRefused)
	ask(7001, "a!", works)
	ask(7001, "-", works)

	// The program gives up while its connection waits for an answer, so answers come too late.
	giveUp := func(told string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			a.waitFor(t, ":7002")
			cancel()
		}()
		if c, err := pair.A.Dial(ctx, "tcp", to(7002).String()); err == nil {
			c.Close()
			t.Error("connected without an answer")
		}
		a.waitFor(t, told)
	}
	if needProcesses() == nil {
		giveUp("the connection was closed")
	}

	// Nobody answers.
	writeRules(t, path, rules("1s"))
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, p, `"event":"rules"`, 1)
	ask(7003, "", isRefused)
	if needProcesses() != nil {
		giveUp("nobody answered in time")
	}
	out, status := p.end(t, os.Interrupt)
	if status != 0 {
		t.Errorf("status %d: %s", status, p.errout)
	}
	got := map[string]int{}
	for _, e := range decisions(t, out) {
		got[fmt.Sprintf("%v %d %s", e.Action, e.Remote.Port(), e.At)]++
	}
	for _, want := range []string{"reject 7001 nobody", "allow 7001 answer", "deny 7002 answer", "reject 7003 answer", "reject 7003 timeout"} {
		if got[want] == 0 {
			t.Errorf("no %q among %v", want, got)
		}
	}
	a.waitFor(t, "the firewall has ended")

	// The next firewall remembers the permanent answers, and the rules file is unchanged.
	if text, err := os.ReadFile(path); err != nil || string(text) != rules("1s") {
		t.Errorf("the rules are %q, %v", text, err)
	}
	p = start(t, pair.A, "firewall", "run", "--json", "--socket", filepath.Join(t.TempDir(), "socket"), path)
	if got := try(pair.A, to(7001), patience); got != works {
		t.Errorf("a permanent answer: %s", got)
	}
	if got := try(pair.A, to(7003), patience); got != isRefused {
		t.Errorf("an answer for once: %s", got)
	}
	if out, status := p.end(t, os.Interrupt); status != 0 || !strings.Contains(out, `"at":"answer"`) {
		t.Errorf("status %d: %s%s", status, out, p.errout)
	}
}

// asker is divert firewall ask.
type asker struct {
	in   *os.File
	out  *syncBuffer
	seen int
}

// askOn starts divert firewall ask.
func askOn(t *testing.T, socket string) *asker {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	a := &asker{in: w, out: &syncBuffer{}}
	done := make(chan int)
	go func() {
		done <- (&app{in: r, out: a.out, errout: a.out}).run(context.Background(), []string{"firewall", "ask", "--socket", socket})
	}()
	t.Cleanup(func() {
		w.Close()
		if status := <-done; status != 0 {
			t.Errorf("ask: status %d: %s", status, a.out)
		}
		r.Close()
	})
	a.waitFor(t, "waiting for questions")
	return a
}

// waitFor waits until a text appears after those it has already waited for.
func (a *asker) waitFor(t *testing.T, text string) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		if at := strings.Index(a.out.String()[a.seen:], text); at >= 0 {
			a.seen += at + len(text)
			return
		}
		if time.Since(begun) > patience {
			t.Errorf("%q did not appear: %s", text, a.out.String()[a.seen:])
			return
		}
	}
}

// answer types an answer. Right after a question was withdrawn the answer is rejected, and answer types it again.
func (a *asker) answer(t *testing.T, word string) {
	t.Helper()
	at := len(a.out.String())
	fmt.Fprintln(a.in, word)
	for begun := time.Now(); time.Since(begun) < patience; time.Sleep(5 * time.Millisecond) {
		text := a.out.String()[at:]
		if strings.Contains(text, "answered: ") {
			return
		}
		if strings.Contains(text, "typed for the previous question") {
			time.Sleep(100 * time.Millisecond)
			at = len(a.out.String())
			fmt.Fprintln(a.in, word)
		}
	}
	t.Errorf("the answer %s was not accepted: %s", word, a.out)
}

// Names come from a resolver's answers and from TLS clients' hellos.
func TestFirewallNames(t *testing.T) {
	needTUN(t)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	tcpEcho(t, pair.B, 7001)
	resolver := netip.AddrPortFrom(pair.B.Addr4(), 53)
	dns, err := pair.B.ListenPacket("udp", resolver.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dns.Close() })
	go answerNames(dns, pair.B.Addr4())
	for _, a := range pair.B.Addrs() {
		l, err := pair.B.Listen("tcp", netip.AddrPortFrom(a, 443).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go serveTLS(l, certificate(t))
	}
	rules := "default: reject\nresolvers: [" + pair.B.Addr4().String() + "]\nrules: [{action: allow, port: 53}, {action: allow, host: .good.example}]\n"
	p, _ := firewallOn(t, pair.A, rules)
	named := netip.AddrPortFrom(pair.B.Addr4(), 7001)
	if got := try(pair.A, named, patience); got != isRefused {
		t.Errorf("before the name is known: %s", got)
	}
	c, err := pair.A.Dial(t.Context(), "udp", resolver.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(question("www.good.example.")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	if got := try(pair.A, named, patience); got != works { // at once
		t.Errorf("when the name is known: %s", got)
	}
	for name, want := range map[string]string{"a.good.example": works, "bad.example": isRefused} {
		c, err := pair.A.Dial(t.Context(), "tcp", netip.AddrPortFrom(pair.B.Addr6(), 443).String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		got := works
		if err := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true}).HandshakeContext(t.Context()); err != nil {
			got = failure(err)
		}
		if got != want {
			t.Errorf("TLS to %s: %s, want %s", name, got, want)
		}
		c.Close()
	}
	quic := netip.AddrPortFrom(pair.B.Addr6(), 443)
	e, err := pair.B.Echo("udp", quic.String())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for name, want := range map[string]string{"a.good.example": works, "bad.example": isRefused} {
		c, err := pair.A.Dial(t.Context(), "udp", quic.String())
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		for n, part := range quictest.Split(quictest.Hello(t, name), 1000) { // one or two datagrams, as browsers send
			b := quictest.Initial(t, &quicinitial.Versions[0], []byte{1, 2, 3, 4, 5, 6, 7, 8}, nil, uint8(n), 1200, part)
			if _, err = c.Write(b); err != nil {
				break
			}
		}
		got := works
		if err == nil {
			_, err = c.Read(make([]byte, 1500))
		}
		if err != nil {
			got = failure(err)
		}
		if got != want {
			t.Errorf("QUIC to %s: %s, want %s", name, got, want)
		}
		c.Close()
	}
	if _, status := p.end(t, os.Interrupt); status != 0 {
		t.Errorf("status %d: %s", status, p.errout)
	}
}

func question(name string) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 77}, Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// answerNames answers each DNS question with an address.
func answerNames(c net.PacketConn, a netip.Addr) {
	b := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response = true
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: a.As4()},
		}}
		if answer, err := m.Pack(); err == nil {
			_, _ = c.WriteTo(answer, from)
		}
	}
}

// certificate makes a self-signed certificate.
func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{SerialNumber: big.NewInt(1)}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{b}, PrivateKey: key}
}

// serveTLS completes the handshake with each client.
func serveTLS(l net.Listener, cert tls.Certificate) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
			if s.Handshake() == nil { // otherwise the firewall has ended it
				_, _ = io.Copy(io.Discard, s)
			}
		}()
	}
}
