//go:build linux

package examples

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/processes"
)

func TestRedirect(t *testing.T) {
	if err := processes.OfPackets.Err(); err != nil {
		t.Skip(err)
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	echo, err := pair.B.Echo("tcp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	var out output
	stop := start(t, pair.A, &out, build(t, "redirect"), "tcp.DstPort == 7777")
	c, err := pair.A.Dial(t.Context(), "tcp", netip.AddrPortFrom(pair.B.Addr6(), 7777).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 5)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	stop()
	if want := fmt.Sprintf("[%d] to [%v]:7777\n", os.Getpid(), pair.B.Addr6()); !strings.Contains(out.String(), want) {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}
