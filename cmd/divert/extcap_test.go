package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExtcap runs the commands that Wireshark runs.
func TestExtcap(t *testing.T) {
	for _, test := range []struct {
		name   string
		args   []string
		status int
		out    []string // expected in the output
		errout string
	}{
		{"interfaces", []string{"--extcap-interfaces", "--extcap-version=4.0"}, 0, []string{"extcap {version=", "interface {value=divert}{display=Divert: packets of this host"}, ""},
		{"link types", []string{"--extcap-interface", "divert", "--extcap-dlts"}, 0, []string{"dlt {number=101}{name=RAW}"}, ""},
		{"options", []string{"--extcap-interface", "divert", "--extcap-config"}, 0, []string{"arg {number=0}{call=--snapshot-length}", "value {arg=2}{value=kernel}", "{call=--fragments}"}, ""},
		{"right filter", []string{"--extcap-interface=divert", "--extcap-capture-filter=tcp.Syn"}, 0, nil, ""},
		{"no filter", []string{"--extcap-interface=divert", "--extcap-capture-filter="}, 0, nil, ""},
		{"wrong filter", []string{"--extcap-interface=divert", "--extcap-capture-filter", "tcp.Synn"}, 0, []string{"  tcp.Synn\n  ^^^^^^^^\n", "did you mean tcp.Syn?"}, ""},
		{"tcpdump's filter", []string{"--extcap-interface=divert", "--extcap-capture-filter", "udp port 53"}, 0, []string{"udp.SrcPort == 53 or udp.DstPort == 53"}, ""},
		{"filter of another layer", []string{"--extcap-interface=divert-forward", "--extcap-capture-filter", "inbound"}, 0, []string{"inbound does not exist at layer"}, ""},
		{"unknown interface", []string{"--extcap-interface", "eth0", "--extcap-dlts"}, exitUsage, nil, "the interfaces are divert and divert-forward"},
		{"nothing asked", []string{"--extcap-interface", "divert"}, exitUsage, nil, "needs one of"},
		{"no pipe", []string{"--capture", "--extcap-interface", "divert"}, exitUsage, nil, "--fifo"},
		{"capture with a wrong filter", []string{"--capture", "--extcap-interface", "divert", "--fifo", "/dev/null", "--extcap-capture-filter", "tcp.Synn"}, exitUsage, nil, "did you mean tcp.Syn?"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := test.args
			if !isExtcap(args) {
				args = append([]string{"extcap"}, args...)
			}
			r := runCommand(t, "", args...)
			if r.status != test.status || !strings.Contains(r.errout, test.errout) || len(test.out) == 0 && r.out != "" {
				t.Errorf("status %d\n%s%s", r.status, r.out, r.errout)
			}
			for _, part := range test.out {
				if !strings.Contains(r.out, part) {
					t.Errorf("%q is missing in\n%s", part, r.out)
				}
			}
		})
	}
}

// TestExtcapInstall installs the link and the plugin for Wireshark, twice, and expects that it never replaces a file.
func TestExtcapInstall(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("USERPROFILE", home)
	for range 2 {
		if r := runCommand(t, "", "extcap", "--install"); r.status != exitOK {
			t.Skipf("links cannot be made here: %s", r.errout)
		}
	}
	link := filepath.Join(home, ".local", "lib", "wireshark", "extcap", "divert")
	target, err := os.Readlink(link)
	if program, _ := os.Executable(); err != nil || target != program {
		t.Errorf("the link leads to %s: %v", target, err)
	}
	if _, err := os.Stat(filepath.Join(home, ".local", "lib", "wireshark", "plugins", "divert.lua")); err != nil {
		t.Error(err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(link, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := runCommand(t, "", "extcap", "--install"); r.status != exitFailed || !strings.Contains(r.errout, "already exists and is not a link") {
		t.Errorf("status %d: %s", r.status, r.errout)
	}
}
