//go:build linux

package main_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// TestSmallBuffers uploads through a program whose buffers hold packets as they are on the wire, and no longer ones.
func TestSmallBuffers(t *testing.T) {
	t.Parallel()
	program := compile(t, "segments.c", gccModern)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	l, err := pair.B.Listen("tcp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const size = 3 << 20
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
	c := exec.Command(program, pair.B.Addr4().String(), port, "3145728")
	c.Env = append(os.Environ(), "DIVERT_SEGMENTS=1")
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
	if n := <-got; n != size || out.String() != "0 too long, many\n" {
		t.Errorf("%d of %d bytes arrived: %s", n, size, &out)
	}
}
