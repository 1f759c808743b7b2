package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// completions returns the words that the shell would offer after a command line, without descriptions.
func completions(t *testing.T, args ...string) (words []string, directive string) {
	t.Helper()
	r := runCommand(t, "", append([]string{cobra.ShellCompRequestCmd}, args...)...)
	if r.status != exitOK {
		t.Fatalf("%v: %+v", args, r)
	}
	for line := range strings.Lines(r.out) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, ":") {
			return words, line
		}
		word, _, _ := strings.Cut(line, "\t")
		words = append(words, word)
	}
	t.Fatalf("%v: no directive in %s", args, r.out)
	return nil, ""
}

// TestCompletion requests completions as a shell's script does.
func TestCompletion(t *testing.T) {
	for _, test := range []struct {
		args string // the last word is unfinished; _ stands for an empty word
		want string // all of them, or with "…" some of them
	}{
		{"drop tcp.Dst", "tcp.DstPort"},
		{"drop _", "… tcp udp ip.SrcAddr outbound not"},
		{"drop outbound _", "== != < <= > >= in and or"},
		{"drop outbound a", "and"},
		{"drop outbound and udp.S", "udp.SrcPort"},
		{"drop tcp.DstPort == _", ""},
		{"drop tcp.DstPort == 80 _", "and or"},
		{"drop (udp.D", "(udp.DstPort"},
		{"drop 'udp and tcp.Dst'", "udp and tcp.DstPort"},
		{"drop protocol == _", "TCP UDP ICMP ICMPV6"},
		{"drop protocol==T", "protocol==TCP"},
		{"drop tcp.DstPort in _", "{ @"},
		{"drop tcp.Payload32", "tcp.Payload32["},
		{"drop ip.SrcAddr==fe80::", ""},
		{"sockets event == C", "CONNECT CLOSE"},
		{"flows event == _", "ESTABLISHED DELETED"},
		{"list layer == NETWORK_", "NETWORK_FORWARD"},
		{"watch ev", "event"},
		{"dump --layer socket remoteP", "remotePort"},
		{"dump --layer network endp", ""},
		{"dump --layer flow endp", "endpointId"},
		{"dump --layer s", "network forward flow socket reflect"},
		{"dump --strict processI", ""},
		{"dump processI", "processId"},
		{"dump --strict ifac", ""},
		{"dump ifac", "iface"},
		{"dump process _", "== != in"},
		{"dump iface not in _", "{ @"},
		{"dump process in { d_", ""},
		{"delay 1", "10ms 100ms 1s"},
		{"delay 100ms udp.Ds", "udp.DstPort"},
		{"filter explain icmpv6.T", "icmpv6.Type"},
		{"filter eval tcp.Sy", "tcp.Syn"},
		{"proxy remoteA", "remoteAddr"},
		{"dump -i an", "any"},
		{"kill a", "all"},
		{"kill 4711 _", ""},
	} {
		args := words(test.args)
		if last := len(args) - 1; args[last] == "_" {
			args[last] = ""
		}
		got, directive := completions(t, args...)
		if some, ok := strings.CutPrefix(test.want, "… "); ok {
			for _, w := range strings.Fields(some) {
				if !slices.Contains(got, w) {
					t.Errorf("%s: %q is not offered: %v", test.args, w, got)
				}
			}
		} else if want := strings.Fields(test.want); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: %q, want %q", test.args, got, want)
		}
		if want := map[bool]string{false: ":4", true: ":6"}[strings.HasSuffix(test.want, "[")]; directive != want {
			t.Errorf("%s: directive %s, want %s", test.args, directive, want)
		}
	}
}

// FuzzCompletion completes arbitrary text.
func FuzzCompletion(f *testing.F) {
	f.Add("udp and tcp.D")
	f.Add("(!=::[")
	f.Add("tcp.Payload[3b] in {")
	flags := dialectFlags{layers: packetLayers}
	f.Fuzz(func(t *testing.T, text string) {
		words, _ := flags.completeFilter(nil, []string{text}, text)
		for _, w := range words {
			if at := strings.LastIndexAny(text, " \t\n()!?:=<>&|,{") + 1; !strings.HasPrefix(w, text[:at]) {
				t.Errorf("%q does not begin as %q", w, text)
			}
		}
		if n := len(strings.Join(filterTokens(text), "")); n > len(text) {
			t.Errorf("%q has tokens of %d bytes", text, n)
		}
	})
}
