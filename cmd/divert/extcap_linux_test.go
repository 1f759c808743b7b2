package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

// TestTsharkCapturesThroughDivert has tshark list the interfaces, refuse a wrong filter, and capture packets with their
// process. It runs as an ordinary user with only the rights that handles need: as root, Wireshark reads no other extcap
// folder, and nobody should run it as root.
func TestTsharkCapturesThroughDivert(t *testing.T) {
	t.Parallel()
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("there is no tshark (Debian: apt-get install tshark)")
	}
	if !initialUserNamespace() || os.Getuid() != 0 {
		t.Skip("only root outside user namespaces can give another user the rights")
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	home := t.TempDir()
	if err := errors.Join(os.Chown(home, nobody, nobody), os.Chmod(filepath.Dir(home), 0o755)); err != nil {
		t.Fatal(err)
	}
	exe, err := os.ReadFile("/proc/self/exe") // the user may not read the folder of the executable
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, "divert"), exe, 0o755); err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(home, "divert.lua")
	if err := os.WriteFile(plugin, wiresharkPlugin, 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		c := exec.CommandContext(ctx, tshark, args...)
		c.Env = append(os.Environ(), "HOME="+home, "WIRESHARK_EXTCAP_DIR="+home, commandVariable+"=1")
		c.WaitDelay = 30 * time.Second // the command lives on for a moment, and shares standard error
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: []uintptr{
			unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_DAC_READ_SEARCH}}
		var out, errout bytes.Buffer
		c.Stdout, c.Stderr = &out, &errout
		if err := pair.A.Start(c); err != nil {
			t.Fatal(err)
		}
		err := c.Wait()
		return out.String(), errout.String(), err
	}
	if out, errout, err := run("-D"); err != nil || !strings.Contains(out, "divert (Divert: packets of this host") {
		t.Fatalf("tshark -D: %v\n%s%s", err, out, errout)
	}
	if _, errout, err := run("-i", "divert", "-f", "tcp port 80", "-c", "1"); err == nil || !strings.Contains(errout, "tcp.SrcPort == 80 or tcp.DstPort == 80") {
		t.Errorf("a wrong filter: %v\n%s", err, errout)
	}

	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			// The process of another user's socket is known only if the socket is younger than the handle.
			c, err := pair.A.Dial(t.Context(), "udp", fmt.Sprintf("%s:7", pair.B.Addr4()))
			if err != nil {
				return // the test is over
			}
			_, _ = c.Write([]byte("datagram"))
			c.Close()
		}
	}()
	out, errout, err := run("-i", "divert", "-f", "outbound and udp.DstPort == 7", "-c", "3", "-X", "lua_script:"+plugin,
		"-T", "fields", "-E", "separator=|", "-e", "udp.dstport", "-e", "frame.packet_flags_direction", "-e", "frame.comment", "-e", "divert.pid")
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, errout)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	pid := fmt.Sprint(os.Getpid())
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "7|0x00000002|") {
		t.Fatalf("tshark captured\n%s\n%s", out, errout)
	}
	// The first packet may be from a socket older than the handle.
	if last := lines[2]; !strings.Contains(last, "["+pid+"]") || !strings.HasSuffix(last, "|"+pid) {
		t.Errorf("tshark shows %q, want the process %s\n%s", last, pid, errout)
	}
}
