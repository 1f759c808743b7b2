package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A SYN to port 80, and a datagram to port 53.
const (
	synHex = "450000281234000040065400 0a4d0001 0a4d0002 9c560050 000f4240 00000000 5002faf0 00000000"
	udpHex = "45:00:00:1d:12:34:00:00:40:11:54:00:0a:4d:00:01:0a:4d:00:02:14:e9:00:35:00:09:00:00:78"
)

// TestCommands runs every subcommand that needs no network, rightly and with every kind of mistake.
func TestCommands(t *testing.T) {
	_, missing := os.Stat("testdata/nothing")
	missing.(*os.PathError).Op = "open" // other systems word the rest differently
	for _, test := range []struct {
		name   string
		in     string
		args   string // separated by blanks; quoted words stay whole
		status int
		out    string
		errout string
	}{
		{name: "check", args: "filter check tcp.DstPort == 80 and outbound", out: "ok: 2 tests\n"},
		{name: "check, one test", args: "filter check udp", out: "ok: 1 test\n"},
		{name: "check from input", in: "udp or tcp\n", args: "filter check", out: "ok: 2 tests\n"},
		{name: "check, always", args: "filter check true", out: "ok, but the filter matches everything at its layer\n"},
		{name: "check, never", args: "filter check false", out: "ok, but the filter matches nothing\n"},
		{name: "check, contradiction", args: "filter check tcp and udp", out: "ok, but the filter matches nothing\n"},
		{name: "check, tautology", args: "filter check inbound or outbound", out: "ok, but the filter matches everything at its layer\n"},
		{name: "check, other layer", args: "filter check --layer socket processId == 4", out: "ok: 1 test\n"},
		{name: "check, no layer", args: "filter check --layer netwrk tcp", status: exitUsage,
			errout: "divert: --layer netwrk: must be one of network, forward, flow, socket, reflect\nSee `divert filter check --help`.\n"},
		{name: "check, wrong layer", args: "filter check --layer socket ifIdx == 4", status: exitUsage, errout: `
divert: the filter does not compile:
  ifIdx == 4
  ^^^^^
ifIdx does not exist at layer SOCKET
hint: ifIdx exists at NETWORK, NETWORK_FORWARD
`},
		{name: "check, unknown field", args: "filter check outbound and tcp.Dstport == 80", status: exitUsage, errout: `
divert: the filter does not compile:
  outbound and tcp.Dstport == 80
               ^^^^^^^^^^^
unknown word "tcp.Dstport"
hint: did you mean tcp.DstPort?
`},
		{name: "check, strict", args: "filter check --strict tcp.DstPort in {80}", status: exitUsage, errout: `
divert: the filter does not compile:
  tcp.DstPort in {80}
              ^^
unknown word "in"
hint: sets, as in {80, 443}, belong to the extended dialect; in this one join comparisons with "or"
`},
		{name: "explain", args: "filter explain outbound and '(tcp? tcp.DstPort in {80,443}: udp.DstPort == 53)'", out: `
given:   outbound and (tcp? tcp.DstPort in {80,443}: udp.DstPort == 53)
filter:  outbound and (tcp? tcp.DstPort in {80, 443}: udp.DstPort = 53)
program: 4 tests at layer network
     0  outbound                  yes: 1       no: reject
     1  tcp                       yes: 2       no: 3
     2  tcp.DstPort in {80, 443}  yes: accept  no: reject
     3  udp.DstPort = 53          yes: accept  no: reject
matches: at most outbound, IPv4 or IPv6
layers:  network
driver:  WinDivert would take it
`},
		{name: "explain, folded", args: "filter explain tcp.DstPort <= 65535 and not false", out: `
given:   tcp.DstPort <= 65535 and not false
filter:  tcp
program: 1 test at layer network
     0  tcp  yes: accept  no: reject
matches: at most inbound or outbound, IPv4 or IPv6
layers:  network, forward
driver:  WinDivert would take it
`},
		{name: "explain, never", args: "filter explain --layer flow udp and false", out: `
given:   udp and false
filter:  false
program: 1 test at layer flow
     0  udp  always reject
result:  matches nothing
matches: nothing
layers:  network, forward, flow, socket
driver:  WinDivert would take it
`},
		{name: "explain, impossible", args: "filter explain tcp and udp", out: `
filter:  tcp and udp
program: 2 tests at layer network
     0  tcp  yes: 1       no: reject
     1  udp  yes: accept  no: reject
result:  matches nothing
matches: nothing
layers:  network, forward, flow, socket
driver:  WinDivert would take it
`},
		{name: "object", args: "filter object tcp.DstPort == 80", out: "@WinDiv_WX_1dWW2mAX\n"},
		{name: "object, none", args: "filter object ipv6.FlowLabel == 5", status: exitFailed,
			errout: "divert: test 0: the instructions of WinDivert 2.2 cannot express ipv6.FlowLabel at NETWORK\n"},
		{name: "format", args: "filter format '!(tcp.DstPort=80)&&outbound'", out: "(tcp.DstPort = 80? false: outbound)\n"},
		{name: "format an object", in: "@WinDiv_WX_1dWW2mAX\n", args: "filter format", out: "tcp.DstPort = 80\n"},
		{name: "format, bad object", args: "filter format @WinDiv_", status: exitUsage, errout: `
divert: the filter does not compile:
the compiled filter is malformed; text that starts with @WinDiv_ is a compiled filter object, and this one is damaged: compile the filter again
`},
		{name: "eval", args: "filter eval tcp.DstPort == 80 -p '" + synHex + "' -p " + udpHex, out: `
1: match  IP 10.77.0.1.40022 > 10.77.0.2.80: Flags [S], seq 1000000, win 64240, length 0
2: no match  IP 10.77.0.1.5353 > 10.77.0.2.53: UDP, length 1
1 of 2 packets match
`},
		{name: "eval, trace", args: "filter eval -v tcp.DstPort == 80 or udp -p " + udpHex, out: `
1: match  IP 10.77.0.1.5353 > 10.77.0.2.53: UDP, length 1
	  0  tcp.DstPort = 80  [absent]  false → 1
	  1  udp  [1]  true → accept
`},
		{name: "eval, input", in: "# packets\n\n" + udpHex + "\n", args: "filter eval outbound and ifIdx == 3 --outbound --ifidx 3",
			out: "1: match  IP 10.77.0.1.5353 > 10.77.0.2.53: UDP, length 1\n"},
		{name: "eval, no hexadecimal", args: "filter eval true -p 45zz", status: exitUsage,
			errout: "divert: packet 1 is not hexadecimal: it has 'z'\nSee `divert filter eval --help`.\n"},
		{name: "eval, odd", args: "filter eval true -p 450", status: exitUsage,
			errout: "divert: packet 1 has an odd number of hexadecimal digits\nSee `divert filter eval --help`.\n"},
		{name: "eval, no packet", args: "filter eval true -p 4500", status: exitFailed,
			errout: "divert: packet 1 is not an IP packet, or its header is damaged\n"},
		{name: "eval, layer", args: "filter eval --layer flow true", status: exitUsage,
			errout: "divert: --layer flow: must be one of network, forward\nSee `divert filter eval --help`.\n"},
		{name: "eval, no filter", args: "filter eval", status: exitUsage,
			errout: "divert: eval needs a filter; use `true` for all packets\nSee `divert filter eval --help`.\n"},
		{name: "unknown command", args: "pasthru", status: exitUsage,
			errout: "divert: divert has no command \"pasthru\"; did you mean passthru?\nSee `divert --help`.\n"},
		{name: "help, unknown command", args: "help pasthru", status: exitUsage,
			errout: "divert: divert has no command \"pasthru\"; did you mean passthru?\nSee `divert help --help`.\n"},
		{name: "unknown subcommand", args: "filter chek", status: exitUsage,
			errout: "divert: divert filter has no command \"chek\"; did you mean check?\nSee `divert filter --help`.\n"},
		{name: "unknown flag", args: "dump --colour", status: exitUsage, errout: "divert: divert dump has no flag --colour\nSee `divert dump --help`.\n"},
		{name: "negative number", args: "passthru timestamp > -3", status: exitUsage,
			errout: "divert: divert passthru has no flag -3; a filter with a negative number goes in quotes\nSee `divert passthru --help`.\n"},
		{name: "negative number in quotes", args: "filter format 'timestamp > -3'", out: "timestamp > -3\n"},
		{name: "flag value", args: "dump --layer netwrk", status: exitUsage,
			errout: "divert: --layer netwrk: must be one of network, forward, flow, socket, reflect\nSee `divert dump --help`.\n"},
		{name: "dump, file of events", args: "dump --layer socket -w x", status: exitUsage,
			errout: "divert: --write applies to packets, but the layer socket has events\nSee `divert dump --help`.\n"},
		{name: "dump, events of a file", args: "dump --layer flow -r x", status: exitUsage,
			errout: "divert: --read applies to packets, but the layer flow has events\nSee `divert dump --help`.\n"},
		{name: "dump, bytes of events", args: "dump --layer reflect -x", status: exitUsage,
			errout: "divert: --hex applies to packets, but the layer reflect has events\nSee `divert dump --help`.\n"},
		{name: "dump, fragments of events", args: "dump --layer socket --fragments", status: exitUsage,
			errout: "divert: --fragments applies to packets, but the layer socket has events\nSee `divert dump --help`.\n"},
		{name: "dump, engine of handles", args: "dump --layer reflect --engine kernel", status: exitUsage,
			errout: "divert: --engine applies to filters in the kernel, which the layer reflect does not use\nSee `divert dump --help`.\n"},
		{name: "dump, filter of events", args: "dump --layer socket ifIdx == 4", status: exitUsage, errout: `
divert: the filter does not compile:
  ifIdx == 4
  ^^^^^
ifIdx does not exist at layer SOCKET
hint: ifIdx exists at NETWORK, NETWORK_FORWARD
`},
		{name: "drop, layer", args: "drop --layer flow true", status: exitUsage,
			errout: "divert: --layer flow: must be one of network, forward, socket\nSee `divert drop --help`.\n"},
		{name: "dump, negative count", args: "dump -c -1", status: exitUsage, errout: "divert: --limit -1 is negative\nSee `divert dump --help`.\n"},
		{name: "dump, short snapshots", args: "dump -s 20", status: exitUsage,
			errout: "divert: --snapshot-length 20 is less than the longest headers take; it must be 0 or at least 64\nSee `divert dump --help`.\n"},
		{name: "dump, flags", args: "dump -w x -v", status: exitUsage, errout: "divert: --write and --verbose cannot be combined\nSee `divert dump --help`.\n"},
		{name: "dump, flags of handles", args: "dump -r x --priority 5", status: exitUsage,
			errout: "divert: --read and --priority cannot be combined\nSee `divert dump --help`.\n"},
		{name: "dump, no file", args: "dump -r testdata/nothing", status: exitFailed, errout: "divert: " + missing.Error() + "\n"},
		{name: "dump, empty file", args: "dump -r -", status: exitFailed, errout: "divert: the capture file is empty\n"},
		{name: "dump, other file", in: "not a capture file, this", args: "dump -r -", status: exitFailed,
			errout: "divert: the file is not a pcap or pcapng file: it begins with 6e 6f 74 20\n"},
		{name: "dump, filter", args: "dump tcp udp", status: exitUsage, errout: `
divert: the filter does not compile:
  tcp udp
      ^^^
unexpected "udp", "and", "or" or the end was expected
hint: is "and" or "or" missing?
`},
		{name: "drop, no filter", args: "drop", status: exitUsage,
			errout: "divert: drop needs a filter; use `true` for all packets\nSee `divert drop --help`.\n"},
		{name: "reject, no filter", args: "reject", status: exitUsage,
			errout: "divert: reject needs a filter; use `true` for all packets\nSee `divert reject --help`.\n"},
		{name: "reject, layer", args: "reject --layer flow true", status: exitUsage,
			errout: "divert: --layer flow: must be one of network, forward\nSee `divert reject --help`.\n"},
		{name: "web, no list", args: "web", status: exitUsage,
			errout: "divert: web needs a file with the names to block\nSee `divert web --help`.\n"},
		{name: "web, no file", args: "web testdata/nothing", status: exitFailed, errout: "divert: " + missing.Error() + "\n"},
		{name: "web, a wrong list", args: "web testdata/dump.txt", status: exitUsage,
			errout: "divert: testdata/dump.txt:1: there must be one name a line, or names behind an address as in a hosts file\nSee `divert web --help`.\n"},
		{name: "web, port", args: "web --port 0 /dev/null", status: exitUsage,
			errout: "divert: --port 0: a port is a number from 1 to 65535\nSee `divert web --help`.\n"},
		{name: "web, filter", args: "web /dev/null udp.Dst", status: exitUsage, errout: `
divert: the filter does not compile:
  udp.Dst
  ^^^^^^^
unknown word "udp.Dst"
`},
		{name: "impair, no filter", args: "impair --lag 1s", status: exitUsage,
			errout: "divert: impair needs a filter; use `true` for all packets\nSee `divert impair --help`.\n"},
		{name: "impair, nothing", args: "impair udp", status: exitUsage,
			errout: "divert: there is nothing to do: give one of --loss, --lag, --rate and the others, or --schedule\nSee `divert impair --help`.\n"},
		{name: "impair, share", args: "impair --loss 150% udp", status: exitUsage,
			errout: "divert: --loss 150%: 150% is out of range (0% to 100%)\nSee `divert impair --help`.\n"},
		{name: "impair, unit", args: "impair --lag 5 udp", status: exitUsage,
			errout: "divert: --lag 5: 5 has no unit: write 5ms for milliseconds or 5s for seconds\nSee `divert impair --help`.\n"},
		{name: "impair, alone", args: "impair --loss-run 3 udp", status: exitUsage,
			errout: "divert: --loss-run: it says nothing without loss\nSee `divert impair --help`.\n"},
		{name: "impair, filter", args: "impair --lag 1s udp.Dst", status: exitUsage, errout: `
divert: the filter does not compile:
  udp.Dst
  ^^^^^^^
unknown word "udp.Dst"
`},
		{name: "impair, bounds", args: "impair --lag 1s --max-bytes 0 udp", status: exitUsage,
			errout: "divert: --max-packets and --max-bytes must be at least 1\nSee `divert impair --help`.\n"},
		{name: "impair, direction of forwarded packets", args: "impair --layer forward --direction in --lag 1s true", status: exitUsage,
			errout: "divert: --direction: packets that are forwarded go neither out nor in; use ifIdx in the filter\nSee `divert impair --help`.\n"},
		{name: "impair, flags and a file", args: "impair --loss 1% --schedule - udp", status: exitUsage,
			errout: "divert: --schedule and --loss cannot be combined: the file has the rules\nSee `divert impair --help`.\n"},
		{name: "impair, no file", args: "impair --schedule testdata/nothing udp", status: exitFailed, errout: "divert: " + missing.Error() + "\n"},
		{name: "impair, a file without filters", in: "rules:\n  - lag: 1s\n", args: "impair --schedule -", status: exitUsage,
			errout: "divert: phase 1, rule 1 of - has no filter: give one for such rules, `true` for all packets\nSee `divert impair --help`.\n"},
		{name: "impair, setting in a file", in: "rules:\n  - loss: 2\n", args: "impair --schedule - udp", status: exitUsage,
			errout: "divert: -: line 2, column 11: loss: 2 is out of range (0 to 1, or 0% to 100%)\nSee `divert impair --help`.\n"},
		{name: "impair, filter in a file", in: "rules:\n  - lag: 1s\n    filter: tdp\n", args: "impair --schedule -", status: exitUsage,
			errout: "divert: line 3, column 13: filter: column 1: unknown word \"tdp\"; did you mean TCP, UDP, tcp or udp?\nSee `divert impair --help`.\n"},
		{name: "delay, no time", args: "delay", status: exitUsage, errout: "divert: delay needs a time, as in 100ms, and a filter\nSee `divert delay --help`.\n"},
		{name: "delay, time", args: "delay udp 5ms", status: exitUsage,
			errout: "divert: delay udp: takes a time with its unit, as in 100ms or 1.5s\nSee `divert delay --help`.\n"},
		{name: "firewall check", in: "default: deny\nrules: [{action: allow, port: 443}]\n", args: "firewall check -", out: "ok: 1 rule, default deny, on death open\n"},
		{name: "firewall check, closed", in: "default: ask\non-death: closed\n", args: "firewall check -", out: "ok: 0 rules, default ask, on death closed\n"},
		{name: "firewall check, a bad word", in: "default: deny\nrules:\n  - {action: alow, port: 443}\n", args: "firewall check -", status: exitUsage, errout: `
divert: line 3, column 14: action: "alow" cannot be used here; use one of allow, deny, reject, log, ask
    - {action: alow, port: 443}
               ^
`},
		{name: "firewall check, no file", args: "firewall check testdata/nothing", status: exitFailed, errout: "divert: " + missing.Error() + "\n"},
		{name: "firewall check, no argument", args: "firewall check", status: exitUsage,
			errout: "divert: check needs one file of rules; `divert help firewall` describes them\nSee `divert firewall check --help`.\n"},
		{name: "firewall run, standard input", args: "firewall run -", status: exitUsage,
			errout: "divert: run reads its rules again when they change: they must be in a file\nSee `divert firewall run --help`.\n"},
		{name: "firewall, another word", args: "firewall chek", status: exitUsage,
			errout: "divert: divert firewall has no command \"chek\"; did you mean check?\nSee `divert firewall --help`.\n"},
		{name: "passthru, pass and drop", args: "passthru --pass-on-hang 1s --drop-on-hang 1s", status: exitUsage,
			errout: "divert: --pass-on-hang and --drop-on-hang exclude each other\nSee `divert passthru --help`.\n"},
		{name: "passthru, batch", args: "passthru --batch 256", status: exitUsage, errout: "divert: --batch 256 is out of range (1 to 255)\nSee `divert passthru --help`.\n"},
		{name: "version, arguments", args: "version 2", status: exitUsage,
			errout: "divert: version takes no arguments, but there is \"2\"\nSee `divert version --help`.\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := runCommand(t, test.in, words(test.args)...)
			want := result{test.status, strings.TrimPrefix(test.out, "\n"), strings.TrimPrefix(test.errout, "\n")}
			if r != want {
				t.Errorf("status %d\noutput:\n%s\nerrors:\n%s\nwant %d\n%s\n%s", r.status, r.out, r.errout, want.status, want.out, want.errout)
			}
		})
	}
}

// words splits a command line as a shell does, as far as blanks and single quotes go.
func words(line string) (w []string) {
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			w = append(w, part)
		} else {
			w = append(w, strings.Fields(part)...)
		}
	}
	return w
}

func TestFilterFields(t *testing.T) {
	r := runCommand(t, "", "filter", "fields", "--layer", "reflect")
	if r.status != exitOK || r.errout != "" {
		t.Fatalf("status %d: %s", r.status, r.errout)
	}
	for _, want := range []string{"All layers\n", "\nLayers reflect\n  layer ", "  priority               -30000 to 30000 "} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in\n%s", want, r.out)
		}
	}
	if strings.Contains(r.out, "tcp.DstPort") {
		t.Errorf("reflect has no tcp.DstPort:\n%s", r.out)
	}
	all := runCommand(t, "", "filter", "fields")
	for _, want := range []string{"Layers network, forward\n", "  tcp.Payload32[i]  ", "  localPort  "} {
		if !strings.Contains(all.out, want) {
			t.Errorf("%q is not in\n%s", want, all.out)
		}
	}
}

// TestHelp expects a help text with an example for every command.
func TestHelp(t *testing.T) {
	a := &app{}
	root := a.newRoot()
	list := root.Commands()
	for i := 0; i < len(list); i++ {
		c := list[i]
		list = append(list, c.Commands()...)
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: the short help is %q", c.CommandPath(), c.Short)
		}
		if !strings.Contains(c.Example, c.CommandPath()) {
			t.Errorf("%s has no example", c.CommandPath())
		}
		r := runCommand(t, "", append(strings.Fields(c.CommandPath())[1:], "--help")...)
		if r.status != exitOK || !strings.Contains(r.out, "Usage:") || r.errout != "" {
			t.Errorf("%s --help: %+v", c.CommandPath(), r)
		}
	}
}

// TestExamples runs the help's examples that need neither files nor pipes.
func TestExamples(t *testing.T) {
	filters, _, err := (&app{}).newRoot().Find([]string{"filter"})
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, c := range filters.Commands() {
		for line := range strings.Lines(c.Example) {
			w := words(line)
			if strings.ContainsAny(line, "|<…") || strings.Contains(line, " -r ") {
				continue
			}
			count++
			if r := runCommand(t, "", w[1:]...); r.status != exitOK || r.out == "" || r.errout != "" {
				t.Errorf("%s: %+v", line, r)
			}
		}
	}
	if count < 6 {
		t.Errorf("only %d examples", count)
	}
}

func TestVersion(t *testing.T) {
	if r := runCommand(t, "", "version"); r.status != exitOK || !strings.Contains(r.out, "WinDivert 2.2") {
		t.Errorf("%+v", r)
	}
}

// TestColours expects colour sequences on a terminal, and none elsewhere.
func TestColours(t *testing.T) {
	file := sampleFile(t)
	for _, colour := range []bool{true, false} {
		var out, errout bytes.Buffer
		a := &app{in: bytes.NewReader(file), out: &out, errout: &errout, colour: colour, errColour: colour}
		if status := a.run(context.Background(), []string{"dump", "-x", "-v", "-r", "-"}); status != exitOK {
			t.Fatalf("status %d", status)
		}
		if n := strings.Count(out.String(), "\x1b["); n > 0 != colour || strings.Count(out.String(), styleEnd)*2 != n {
			t.Errorf("colour %t: %d sequences, %d ends", colour, n, strings.Count(out.String(), styleEnd))
		}
	}
}

// brokenWriter is a pipe whose reader has gone.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) {
	return 0, &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
}

// fullWriter is a full device.
type fullWriter struct{}

func (fullWriter) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestOutputErrors(t *testing.T) {
	file := sampleFile(t)
	for _, args := range []string{"dump -r -", "dump -r - --json", "dump -r - -w -", "filter check tcp", "filter fields", "version"} {
		t.Run(args, func(t *testing.T) {
			var errout bytes.Buffer
			a := &app{in: bytes.NewReader(file), out: brokenWriter{}, errout: &errout}
			if status := a.run(context.Background(), words(args)); status != exitOK || errout.Len() > 0 {
				t.Errorf("broken pipe: status %d: %s", status, &errout)
			}
			a = &app{in: bytes.NewReader(file), out: fullWriter{}, errout: &errout}
			if status := a.run(context.Background(), words(args)); status != exitFailed || !strings.Contains(errout.String(), "no space left") {
				t.Errorf("full: status %d: %s", status, &errout)
			}
		})
	}
}

// TestCopyFile writes the matching packets of a capture file to another, and reads it.
func TestCopyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "udp.pcapng")
	r := runCommand(t, string(sampleFile(t)), "dump", "-r", "-", "-w", path, "udp and not ipv6")
	if r.status != exitOK || r.out != "" {
		t.Fatalf("%+v", r)
	}
	direct := runCommand(t, string(sampleFile(t)), "dump", "-r", "-", "udp and not ipv6")
	again := runCommand(t, "", "dump", "-r", path)
	if direct.out == "" || again.out != direct.out {
		t.Errorf("written and read:\n%s\ndirectly:\n%s", again.out, direct.out)
	}
	if r := runCommand(t, "", "dump", "-r", path, "-w", path); r.status != exitUsage {
		t.Errorf("onto itself: %+v", r)
	}
	if r := runCommand(t, "", "dump", "-r", path, "-c", "2"); strings.Count(r.out, "\n") != 2 {
		t.Errorf("-c 2 prints\n%s", r.out)
	}
	eval := runCommand(t, "", "filter", "eval", "udp", "-r", path)
	if n := strings.Count(direct.out, "\n"); !strings.HasSuffix(eval.out, fmt.Sprintf("\n%d of %d packets match\n", n, n)) {
		t.Errorf("eval:\n%s", eval.out)
	}
}
