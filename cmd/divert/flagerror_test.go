package main

import (
	"strings"
	"testing"
)

// TestFlagErrors expects errors about flags in the command's own words, not those of Go's libraries.
func TestFlagErrors(t *testing.T) {
	for _, test := range []struct {
		args string
		want string
	}{
		{"dump -c abc", `--limit (-c) takes a whole number, not "abc"`},
		{"dump --limit=", `--limit (-c) takes a whole number, not ""`},
		{"dump -c 99999999999999999999", "--limit (-c) 99999999999999999999 is out of range"},
		{"dump --priority 99999", "--priority 99999 is out of range (-30000 to 30000)"},
		{"dump --queue-time 5", "--queue-time 5 has no unit: write 5s for seconds or 5ms for milliseconds"},
		{"dump --queue-time soon", `--queue-time takes a time with its unit, as in 500ms or 2s, not "soon"`},
		{"dump --json=maybe", `--json takes no value, or true or false, not "maybe"`},
		{"dump --engine foo", "--engine foo: must be one of auto, kernel, interpreter"},
		{"dump --layr network", "divert dump has no flag --layr; did you mean --layer?"},
		{"dump --wholly-unlike", "divert dump has no flag --wholly-unlike"},
		{"dump -Y", "divert dump has no flag -Y"},
		{"dump icmp.Type == -5", "divert dump has no flag -5; a filter with a negative number goes in quotes"},
		{"filter eval --ifidx -1 true", `--ifidx takes a whole number, not "-1"`},
		{"dump --limit", "--limit needs a value"},
		{"--versio", "divert has no flag --versio; did you mean --version?"},
	} {
		r := runCommand(t, "", strings.Fields(test.args)...)
		errout, _, _ := strings.Cut(r.errout, "\n")
		if r.status != exitUsage || errout != "divert: "+test.want {
			t.Errorf("%s: status %d, %q, want %q", test.args, r.status, errout, test.want)
		}
	}
}

func TestVersionFlag(t *testing.T) {
	if flag, command := runCommand(t, "", "--version"), runCommand(t, "", "version"); flag != command || flag.out == "" {
		t.Errorf("%+v, want %+v", flag, command)
	}
}
