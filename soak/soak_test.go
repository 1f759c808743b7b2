//go:build linux

package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv(workerEnv); spec != "" {
		if err := work(spec); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	lab.Main(m)
}

// TestSoak runs for some seconds, with every part of a long run.
func TestSoak(t *testing.T) {
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Do(func() error {
		d, err := divert.Open("udp", divert.WithEngine(divert.EngineKernel))
		if err != nil {
			return err
		}
		return d.Close()
	}); errors.Is(err, divert.ErrNotSupported) || errors.Is(err, os.ErrPermission) {
		t.Skipf("workers need eBPF: %v", err)
	}
	r, err := run(context.Background(), options{duration: 4 * time.Second, rate: 500, workers: 2, seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	r.print(&text)
	if !r.fine() {
		t.Errorf("%s", text.String())
	}
	if _, _, sent, arrived, _, _, _ := r.losses(); sent < 500 || arrived < sent/2 {
		t.Errorf("%d of %d datagrams arrived", arrived, sent)
	}
	if r.sum.Opened == 0 || r.kills+r.stops+r.flaps+r.foreign == 0 {
		t.Errorf("nothing happened:\n%s", text.String())
	}
}

func TestExplain(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	by, left := explain([]time.Time{at(1), at(5), at(6), at(9)}, []window{{from: at(4), to: at(6), why: "killed"}, {from: at(6), to: at(8), why: "link down"}})
	if by["killed"] != 2 || by["link down"] != 0 || len(left) != 2 || left[1] != at(9) {
		t.Errorf("%v, %v", by, left)
	}
}

// TestFaults: an unexplained loss, a duplicate datagram and growth are reported.
func TestFaults(t *testing.T) {
	f := &flow{next: 3, arrived: 1, doubled: 1, lost: []time.Time{time.Unix(50, 0)}}
	r := result{begin: time.Unix(0, 0), flows: []*flow{f}}
	for i := range 40 {
		r.samples = append(r.samples, sample{memory: 1000 + 100*i, descriptors: 5})
	}
	got := strings.Join(r.faults(), "\n")
	for _, want := range []string{"1 datagrams are lost", "1 datagrams came twice", "memory, KiB: "} {
		if !strings.Contains(got, want) {
			t.Errorf("%q does not say %q", got, want)
		}
	}
	if strings.Contains(got, "descriptors") {
		t.Errorf("%q", got)
	}
}

func TestBufferErrors(t *testing.T) {
	if n := bufferErrors("Ip: Forwarding\nIp: 1\nUdp: InDatagrams RcvbufErrors SndbufErrors\nUdp: 7 3 1\nUdpLite: RcvbufErrors\nUdpLite: 9\n"); n != 3 {
		t.Errorf("IPv4: %d", n)
	}
	if n := bufferErrors("Udp6InErrors\t5\nUdp6RcvbufErrors                \t4\n"); n != 4 {
		t.Errorf("IPv6: %d", n)
	}
}
