package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// TestDumpBigTCP writes and prints packets on loopback that are too long for the length in their headers, with and
// without a snapshot length. It expects their true length and no losses.
func TestDumpBigTCP(t *testing.T) {
	if err := needProcesses(); err != nil {
		t.Skipf("the kernel does not decide here: %v", err)
	}
	for _, to := range []string{"127.0.0.1", "::1"} {
		for _, snap := range []string{"0", "200"} {
			t.Run(fmt.Sprintf("%s, snapshot length %s", to, snap), func(t *testing.T) {
				h, err := lab.NewT(t).AddHost("h")
				if err != nil {
					t.Fatal(err)
				}
				longLoopback(t, h)
				p := start(t, h, "dump", "-s", snap, "--json", "-w", "-", "tcp.PayloadLength > 0")
				for range 5 {
					sendAtOnce(t, h, netip.MustParseAddr(to), 4<<20)
				}
				out, status := p.end(t, os.Interrupt)
				if status != exitOK {
					t.Fatalf("status %d: %s", status, p.errout)
				}
				checkLongPackets(t, out)
			})
		}
	}
}

// sendAtOnce sends n bytes over TCP with a single call. A sender that writes piece by piece, more slowly than the other
// side reads, sends each piece in its own packet, so no packet is long.
func sendAtOnce(t *testing.T, h *lab.Host, to netip.Addr, n int) {
	t.Helper()
	l, err := h.Listen("tcp", netip.AddrPortFrom(to, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	received := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			var got int64
			if got, err = io.Copy(io.Discard, c); err == nil && got != int64(n) {
				err = fmt.Errorf("%d of %d bytes received", got, n)
			}
		}
		received <- err
	}()
	c, err := h.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Write(make([]byte, n))
	if err = errors.Join(err, c.Close(), <-received); err != nil {
		t.Fatal(err)
	}
}

// checkLongPackets reads the file of 5 transfers of 4 MiB.
func checkLongPackets(t *testing.T, file string) {
	t.Helper()
	r, err := capfile.NewReader(strings.NewReader(file), packet.LayerNetwork)
	if err != nil {
		t.Fatal(err)
	}
	long, payload := 0, 0
	for {
		var p capfile.Packet
		err := r.Next(&p)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var parsed packet.Parsed
		if !capfile.Parse(&parsed, p.Data, p.Length) || parsed.TCPOff < 0 || int(parsed.Length) != p.Length || p.Length < len(p.Data) {
			t.Fatalf("%d of %d bytes: %+v", len(p.Data), p.Length, parsed)
		}
		if p.Length > 65575 {
			long++
		}
		payload += payloadLength(&parsed)
	}
	if c := r.Complaints(); len(c) > 0 || payload < 5*4<<20 {
		t.Errorf("%d bytes in packets; %v", payload, c)
	}
	if long == 0 {
		t.Error("no packet is longer than its header can tell")
	}
	printed := runCommand(t, file, "dump", "-r", "-")
	if printed.status != exitOK || strings.Contains(printed.out, "not an IP packet") || strings.Count(printed.out, " bytes]") < long {
		t.Errorf("status %d; %s", printed.status, printed.errout)
	}
	for line := range bytes.Lines([]byte(printed.out)) {
		if !bytes.Contains(line, []byte("length ")) || bytes.Contains(line, []byte("length 0")) {
			t.Fatalf("printed as %s", line)
		}
	}
}

// longLoopback lets TCP hand packets of up to 180,000 bytes to lo, or skips.
func longLoopback(t *testing.T, h *lab.Host) {
	t.Helper()
	nl, err := h.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	link, err := nl.LinkByName("lo")
	if err == nil {
		const most = 180_000
		err = errors.Join(nl.LinkSetGSOMaxSize(link, most), nl.LinkSetGSOIPv4MaxSize(link, most))
	}
	if err != nil {
		t.Skipf("no BIG TCP here: %v", err)
	}
	// A packet is at most half as long as the window that the receiver advertises.
	if err := h.Sysctl("net.ipv4.tcp_rmem", "4096 4194304 8388608"); err != nil {
		t.Fatal(err)
	}
	// Disable the limit that TCP derives from the round-trip time: on a busy machine it makes packets shorter.
	if err := h.Sysctl("net.ipv4.tcp_tso_rtt_log", "30"); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}
