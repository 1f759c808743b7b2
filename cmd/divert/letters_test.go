package main

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

// TestTcpdumpsLetters tries the flags of tcpdump's tutorials on a capture file.
func TestTcpdumpsLetters(t *testing.T) {
	file := string(sampleFile(t))
	filterFile := filepath.Join(t.TempDir(), "filter")
	if err := os.WriteFile(filterFile, []byte("tcp.Syn and not tcp.Ack\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args   string
		status int
		first  string // a pattern for the first line of output
		errout string // expected part
	}{
		{"-nn -c 1 tcp", 0, `^05:06:07\.123456 eth0 -> IP 10`, ""},
		{"-nnSXvv -s0 -c1 tcp", 0, `^2\d{3}-\d\d-\d\d 05:06:07\.123456\d{3} eth0 `, ""},
		{"-t -c 1 tcp", 0, `^eth0 -> IP`, ""},
		{"-tt -c 1 tcp", 0, `^\d{10}\.123456 eth0`, ""},
		{"-tt --nano -c 1 tcp", 0, `^\d{10}\.123456\d{3} eth0`, ""},
		{"-ttt -c 1 tcp", 0, `^ 00:00:00\.000000 eth0`, ""},
		{"-tttt -c 1 tcp", 0, `^2\d{3}-\d\d-\d\d 05:06:07\.123456 eth0`, ""},
		{"-ttttt -c 1 tcp", 0, `^ 00:00:00\.000000 eth0`, ""},
		{"-# -t -c 1 tcp", 0, `^1 eth0`, ""},
		{"-e -t -c 1 tcp", 0, `^eth0 -> ethertype IPv4 \(0x0800\), length 60: IP 10`, ""},
		{"-l -p -n -N -O -f -K -U -c 1 tcp", 0, `^05`, ""},
		{"--count tcp.Syn", 0, `^\d+ packets$`, ""},
		{"--count tcp.Syn and udp", 0, `^0 packets$`, ""},
		{"-Q in -t -c 1 true", 0, `^eth0 <- `, ""},
		{"-Q out -t -c 1 true", 0, `^eth0 -> `, ""},
		{"-F " + filterFile + " -t", 0, `Flags \[S\]`, ""},
		{"-F " + filterFile + " tcp", exitUsage, "", "the filter is given twice"},
		{"-F /does/not/exist", exitFailed, "", "/does/not/exist"},
		{"-d tcp.Syn", 0, `^filter:  tcp\.Syn$`, ""},
		{"-L", 0, `^Data link types`, ""},
		{"-D", 0, `^1\.`, ""},
		{"-y raw -t -c 1 tcp", 0, `^eth0`, ""},
		{"-y EN10MB tcp", exitUsage, "", "the only link type is RAW"},
		{"-I tcp", exitUsage, "", "monitor mode"},
		{"-B 4096 tcp", exitUsage, "", "--queue-size"},
		{"-Q sideways tcp", exitUsage, "", "must be one of inout, in, out"},
		{"-A -X tcp", exitUsage, "", "-X prints both"},
		{"-C 1 tcp", exitUsage, "", "need a file to write"},
		{"-i eth0 tcp", exitUsage, "", "--read and --interface cannot be combined"},
		{"--count -w x tcp", exitUsage, "", "choose one"},
		{"-w x -C 0 tcp", exitUsage, "", "1 or more"},
		{"-w x -W 5 tcp", exitUsage, "", "--file-count goes with"},
		{"-w x -G -5 tcp", exitUsage, "", "negative"},
		{"-w x -Z nobody-of-this-name tcp", exitUsage, "", "no such user"},
		{"--layer flow -x tcp", exitUsage, "", "applies to packets"},
	} {
		t.Run(test.args, func(t *testing.T) {
			if strings.Contains(test.args, "-D") && !hasInterfaces() {
				t.Skip("there are no network interfaces to list")
			}
			args := append([]string{"dump"}, strings.Fields(test.args)...)
			if !strings.Contains(test.args, "--layer") {
				args = slices.Insert(args, 1, "-r", "-")
			}
			r := runCommand(t, file, args...)
			line, _, _ := strings.Cut(r.out, "\n")
			if r.status != test.status || !regexp.MustCompile(test.first).MatchString(line) || !strings.Contains(r.errout, test.errout) {
				t.Errorf("status %d\n%s\n%s", r.status, line, r.errout)
			}
		})
	}
}

// TestInterfacesThatAreNot expects the error for an unknown interface to list the existing ones.
func TestInterfacesThatAreNot(t *testing.T) {
	r := runCommand(t, "", "dump", "-i", "no-such-device", "tcp")
	if r.status != exitUsage || !strings.Contains(r.errout, "no such network interface; there are any") {
		t.Errorf("status %d: %s", r.status, r.errout)
	}
}

func hasInterfaces() bool { _, err := os.Stat("/sys/class/net/lo"); return err == nil }

// TestRotation writes sequences of capture files, and reads all of them.
func TestRotation(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.Local)
	packet := make([]byte, 1000)
	packet[0], packet[2], packet[3] = 0x45, 1000>>8, 1000&0xff
	for _, test := range []struct {
		name    string
		r       rotation
		pattern string
		step    time.Duration
		packets int
		want    []string // files
		kept    int      // packets
	}{
		{"by size", rotation{bytes: 5000}, "x", 0, 20, []string{"x", "x1", "x2", "x3"}, 20},
		{"round", rotation{bytes: 5000, files: 3}, "x", 0, 20, []string{"x0", "x1", "x2"}, 15},
		{"round, twelve names", rotation{bytes: 5000, files: 12}, "x", 0, 10, []string{"x00", "x01"}, 10},
		{"by time", rotation{seconds: 10}, "x-%M%S", 4 * time.Second, 9, []string{"x-0607", "x-0619", "x-0631"}, 9},
		{"by time, ends", rotation{seconds: 10, files: 2}, "x-%M%S", 4 * time.Second, 9, []string{"x-0607", "x-0619"}, 6},
		{"by both", rotation{seconds: 10, bytes: 1500}, "x-%M%S", 4 * time.Second, 6, []string{"x-0607", "x-06071", "x-0619", "x-06191"}, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := &files{rotation: test.r, pattern: filepath.Join(dir, test.pattern), filter: "true", warn: func(err error) { t.Error(err) }}
			if err := s.start(at); err != nil {
				t.Fatal(err)
			}
			for i := range test.packets {
				err := s.write(&record{data: packet, length: len(packet), when: at.Add(time.Duration(i) * test.step), device: "eth0"})
				if err == errLastFile {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			kept := 0
			for _, e := range entries {
				names = append(names, e.Name())
				r := runCommand(t, "", "dump", "-q", "-r", filepath.Join(dir, e.Name()))
				if r.status != exitOK {
					t.Errorf("%s: %s", e.Name(), r.errout)
				}
				kept += strings.Count(r.out, "\n")
			}
			if !slices.Equal(names, test.want) || kept != test.kept {
				t.Errorf("files %v with %d packets, want %v with %d", names, kept, test.want, test.kept)
			}
		})
	}
}

// TestPostrotateCommand runs a command for each complete file.
func TestPostrotateCommand(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the command is a script of sh")
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nmv \"$1\" \"$1.done\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("there is no /bin/sh")
	}
	r := runCommand(t, string(sampleFile(t)), "dump", "-r", "-", "-w", filepath.Join(dir, "x.pcapng"), "-C", "1", "-z", script, "tcp")
	if r.status != exitOK {
		t.Fatal(r.errout)
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "x.pcapng.done")); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the command did not run")
		}
	}
}

// TestTcpdumpsFlagsInTheManual compares docs/tcpdump.md with the command: flags listed as the same must exist, and
// refused ones must be refused.
func TestTcpdumpsFlagsInTheManual(t *testing.T) {
	page, err := os.ReadFile("../../docs/tcpdump.md")
	if err != nil {
		t.Fatal(err)
	}
	flags := newDump(&app{}).Flags()
	rows := 0
	for _, row := range regexp.MustCompile("(?m)^\\| (`-.*?) \\| (\\w+) \\|").FindAllStringSubmatch(string(page), -1) {
		for _, name := range regexp.MustCompile("`(-[^`]+)`").FindAllStringSubmatch(row[1], -1) {
			rows++
			var f *pflag.Flag
			if long, is := strings.CutPrefix(name[1], "--"); is {
				f = flags.Lookup(long)
			} else {
				f = flags.ShorthandLookup(name[1][1:2])
			}
			refused := false
			if f != nil {
				_, refused = f.Value.(refusedFlag)
			}
			known := name[1] == "-h" || name[1] == "--version" // every command has -h, and divert --version
			if there := f != nil && !refused || known; there != (row[2] != "refused") {
				t.Errorf("%s is listed as %s", name[1], row[2])
			}
			if row[2] == "refused" && !strings.HasPrefix(name[1], "--") && !refused {
				t.Errorf("%s is refused without a reason", name[1])
			}
		}
	}
	if rows < 55 {
		t.Errorf("only %d flags in the table", rows)
	}
}
