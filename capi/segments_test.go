//go:build linux

package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// TestSmallBuffers uploads through programs whose buffers hold packets as they are on the wire, but no longer ones.
// Without a setting in the environment the handle notices this, even for packets that wait already.
func TestSmallBuffers(t *testing.T) {
	program := compile(t, "segments.c", gccModern)
	for _, row := range []struct {
		name, segments string
		buffer         int
		descriptor     []string
	}{
		{"from the start", "1", 1600, nil},
		{"noticed", "", 1600, nil},
		{"noticed, 9,016 bytes", "", 9016, nil},
		{"noticed, received ahead", "", 1600, []string{"descriptor"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			if out := upload(t, program, row.segments, row.buffer, row.descriptor...); out != "0 too long, 0 not sent, many\n" {
				t.Error(out)
			}
		})
	}
}

// TestSmallBuffersSniffing: copies are as packets on the wire, with their checksums, even of packets that the stack has
// joined.
func TestSmallBuffersSniffing(t *testing.T) {
	t.Parallel()
	needCopies(t)
	program := compile(t, "segments.c", gccModern)
	for _, segments := range []string{"", "1"} {
		out := upload(t, program, segments, 1600, "sniff")
		bytes, rest, _ := strings.Cut(out, " bytes, ")
		if n, _ := strconv.Atoi(bytes); n < uploaded || rest != "0 wrong, 0 too long, 0 not sent, many\n" { // more if TCP retransmits
			t.Errorf("DIVERT_SEGMENTS=%s: %s", segments, out)
		}
	}
}

// needCopies skips the test where copies of packets come through the packet log, which does not report the size of
// segments.
func needCopies(t *testing.T) {
	t.Helper()
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	err = h.Do(func() error {
		d, err := divert.Open("false", divert.WithFlags(divert.Sniff), divert.WithSegments())
		if err == nil {
			err = d.Close()
		}
		return err
	})
	if errors.Is(err, divert.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestSegmentsNever: the environment may ask for packets as the stack has them. A program with room for these gets them.
func TestSegmentsNever(t *testing.T) {
	t.Parallel()
	out := upload(t, compile(t, "segments.c", gccModern), "0", 65575)
	if !strings.HasPrefix(out, "0 too long, 0 not sent, ") {
		t.Error(out)
	}
}

// uploaded is the number of bytes that upload sends.
const uploaded = 3 << 20

// upload makes a program of segments.c upload 3 MB, and returns its output.
func upload(t *testing.T, program, segments string, buffer int, args ...string) string {
	t.Helper()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	l, err := pair.B.Listen("tcp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- -1
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c := exec.Command(program, append([]string{pair.B.Addr4().String(), port, fmt.Sprint(uploaded), fmt.Sprint(buffer)}, args...)...)
	c.Env = append(os.Environ(), "DIVERT_SEGMENTS="+segments)
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	if err := pair.A.Start(c); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(60*time.Second, func() { _ = c.Process.Kill() })
	err = c.Wait()
	timer.Stop()
	if err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	if n := <-got; n != uploaded {
		t.Errorf("%d of %d bytes arrived: %s", n, uploaded, &out)
	}
	return out.String()
}
