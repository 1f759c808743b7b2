package main

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opendivert/divert/packet"
	"golang.org/x/sys/unix"
)

// TestRate reports the processor time that Suricata and the program need for 1,000 rules and a capture of 200 MB in one
// stream, without their start-up. Both inspect the stream to its end.
func TestRate(t *testing.T) {
	if os.Getenv("DIVERT_LONG") == "" {
		t.Skip("a capture of 200 MB: only with DIVERT_LONG=1")
	}
	suricata, err := exec.LookPath("suricata")
	if err != nil {
		t.Skip(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	file := filepath.Join(dir, "rules")
	if err := os.WriteFile(file, []byte(thousand(r)+`alert tcp any any -> any any (msg:"the end"; content:"THE END"; sid:9999;)`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	const size, n = 1460, 200_000_000 / 1460
	p := peer(t, 1, 80)
	packets := p.handshake()
	for i := range n {
		payload := []byte(word(r, size))
		if i == n-1 {
			copy(payload, "THE END")
		}
		packets = append(packets, p.tcp(false, uint32(isn+1)+uint32(i*size), 100, packet.TCPAck, payload))
		if i%3 == 2 || i == n-1 { // Suricata inspects acknowledged bytes within the window
			packets = append(packets, p.tcp(true, 100, uint32(isn+1)+uint32((i+1)*size), packet.TCPAck, nil))
		}
	}
	long, short := writeCapture(t, packets), writeCapture(t, packets[:10])
	spent := func(who int) time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	theirs := func(capture string) time.Duration {
		_ = os.Remove(filepath.Join(dir, "eve.json"))
		begin := spent(unix.RUSAGE_CHILDREN)
		out, err := exec.Command(suricata, "-r", capture, "-S", file, "-l", dir, "--runmode", "single", "--set", "stream.reassembly.depth=0").CombinedOutput()
		if err != nil {
			t.Skipf("suricata: %v\n%s", err, out)
		}
		return spent(unix.RUSAGE_CHILDREN) - begin
	}
	var alerts bytes.Buffer
	ours := func(capture string) time.Duration {
		alerts.Reset()
		begin := spent(unix.RUSAGE_SELF)
		if err := run(context.Background(), &options{capture: capture, files: []string{file}}, nil, &alerts, io.Discard); err != nil {
			t.Fatal(err)
		}
		return spent(unix.RUSAGE_SELF) - begin
	}
	var took [2]time.Duration
	for range 3 {
		took[0] += -theirs(short) + theirs(long)
		took[1] += -ours(short) + ours(long)
	}
	eve, err := os.ReadFile(filepath.Join(dir, "eve.json"))
	if err != nil || !bytes.Contains(eve, []byte("the end")) || !bytes.Contains(alerts.Bytes(), []byte("the end")) {
		t.Errorf("somebody has not looked to the end: %v", err)
	}
	rate := func(d time.Duration) float64 { return 3 * 8 * size * n / 1e6 / d.Seconds() }
	t.Logf("Suricata: %.0f Mb/s, the program: %.0f Mb/s", rate(took[0]), rate(took[1]))
}
