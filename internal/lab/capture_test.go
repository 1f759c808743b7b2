//go:build linux

package lab

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// protocolOf returns a match for frames with this IPv4 protocol and a payload of at least size bytes.
func protocolOf(protocol byte, size int) func(Frame) bool {
	return func(f Frame) bool {
		return len(f.Data) >= 34+size && f.Data[12] == 8 && f.Data[13] == 0 && f.Data[23] == protocol
	}
}

func TestCaptureShowsWhatIsOnTheWire(t *testing.T) {
	rows := []struct {
		name      string
		without   Offload
		transport ChecksumState
		notReady  bool
	}{
		{"checksums offloaded", 0, ChecksumWrong, true},
		{"checksums filled in", OffloadAll, ChecksumRight, false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			p := TwoHostsT(t, LinkOptions{Without: row.without})
			ctx := testContext(t)
			for _, l := range []*Link{p.LinkA, p.LinkB} {
				c, err := l.Capture()
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				k, err := p.B.CountUDP("10.77.0.2:0")
				if err != nil {
					t.Fatal(err)
				}
				defer k.Close()
				if _, err := ExchangeUDP(ctx, p.A, k.Addr(), Exchange{Count: 3, Wait: time.Millisecond, Size: 100}); err != nil {
					t.Fatal(err)
				}
				if err := k.Wait(ctx, 3); err != nil {
					t.Fatal(err)
				}
				if packets, size := k.Count(); packets != 3 || size != 300 {
					t.Errorf("counted %d datagrams, %d bytes", packets, size)
				}
				f, err := c.NextMatch(ctx, protocolOf(unix.IPPROTO_UDP, 0))
				if err != nil {
					t.Fatal(err)
				}
				header, transport := f.Checksums()
				if header != ChecksumRight || transport != row.transport || f.ChecksumNotReady != row.notReady {
					t.Errorf("%s: header %v, transport %v, not ready %t, want right, %v, %t", l.Host(),
						header, transport, f.ChecksumNotReady, row.transport, row.notReady)
				}
				if f.Outgoing != (l == p.LinkA) || len(f.Data) != 14+20+8+100 {
					t.Errorf("%s: outgoing %t, %d bytes", l.Host(), f.Outgoing, len(f.Data))
				}
				if !bytes.Equal(f.Data[:6], p.LinkB.MAC()) || !bytes.Equal(f.Data[6:12], p.LinkA.MAC()) {
					t.Errorf("%s: Ethernet header %x", l.Host(), f.Data[:14])
				}
				if lost, err := c.Dropped(); lost != 0 || err != nil {
					t.Errorf("lost %d packets, %v", lost, err)
				}
			}
		})
	}
}

func TestSegmentsAreLargeOnlyWhenOffloaded(t *testing.T) {
	for _, without := range []Offload{0, OffloadAll} {
		t.Run("without "+without.String(), func(t *testing.T) {
			p := TwoHostsT(t, LinkOptions{Without: without})
			ctx := testContext(t)
			c, err := p.LinkA.Capture()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := TransferTCP(ctx, p.A, p.B, netip.MustParseAddrPort("10.77.0.2:0"), 60_000, 3); err != nil {
				t.Fatal(err)
			}
			if without == 0 {
				if _, err := c.NextMatch(ctx, protocolOf(unix.IPPROTO_TCP, 1500)); err != nil {
					t.Errorf("no large segment: %v", err)
				}
				return
			}
			const data = 1000 // bytes of payload: a full segment
			for seen := 0; seen < 30; seen++ {
				f, err := c.NextMatch(ctx, protocolOf(unix.IPPROTO_TCP, data))
				if err != nil {
					t.Fatal(err)
				}
				if _, transport := f.Checksums(); transport != ChecksumRight || len(f.Data) > 1514 {
					t.Errorf("segment of %d bytes, checksum %v", len(f.Data), transport)
				}
			}
		})
	}
}

// icmpEcho is an IPv4 ping from 10.77.0.1 to 10.77.0.2: identifier 0x1234, sequence 1, no payload.
var icmpEcho, _ = hex.DecodeString("4500001c00000000400166450a4d00010a4d0002" + "0800e5ca12340001")

func TestCaptureSends(t *testing.T) {
	if header, transport := PacketChecksums(icmpEcho); header != ChecksumRight || transport != ChecksumRight {
		t.Fatalf("the packet itself: %v, %v", header, transport)
	}
	p := TwoHostsT(t, LinkOptions{})
	c, err := p.LinkA.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	frame := append(append(append(p.LinkB.MAC(), p.LinkA.MAC()...), 8, 0), icmpEcho...)
	if err := c.Send(frame); err != nil {
		t.Fatal(err)
	}
	f, err := c.NextMatch(testContext(t), func(f Frame) bool {
		return protocolOf(unix.IPPROTO_ICMP, 8)(f) && !f.Outgoing && f.Data[34] == 0
	})
	if err != nil {
		t.Fatal(err)
	}
	if header, transport := f.Checksums(); header != ChecksumRight || transport != ChecksumRight {
		t.Errorf("checksums of the answer: %v, %v", header, transport)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	never := func(Frame) bool { return false }
	if _, err := c.NextMatch(ctx, never); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("NextMatch: %v", err)
	}
	ended := make(chan error, 1)
	go func() { _, err := c.NextMatch(context.Background(), never); ended <- err }()
	c.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("NextMatch after Close: %v", err)
	}
}

func TestTUN(t *testing.T) {
	n := NewT(t)
	h, err := n.AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	tun, err := h.AddTUN("tun0", prefixes("10.77.0.2/24", "fd77::2/64")...)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tun.Write(icmpEcho); err != nil {
		t.Fatal(err)
	}
	if err := tun.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2000)
	for {
		size, err := tun.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if b[0]>>4 != 4 {
			continue // sent by IPv6 itself
		}
		header, transport := PacketChecksums(b[:size])
		if size != len(icmpEcho) || b[20] != 0 || header != ChecksumRight || transport != ChecksumRight {
			t.Errorf("answer %x: %v, %v", b[:size], header, transport)
		}
		break
	}
	if err := tun.Close(); err != nil || h.Link("tun0") != nil || h.Addr4().IsValid() {
		t.Errorf("after Close: %v, %v, %v", err, h.Links(), h.Addrs())
	}
}

func TestPacketChecksums(t *testing.T) {
	udp6 := "6000000000091140fd770000000000000000000000000001fd770000000000000000000000000002"
	rows := []struct {
		name, packet      string
		header, transport ChecksumState
	}{
		{"empty", "", ChecksumNone, ChecksumNone},
		{"not IP", "00112233445566778899", ChecksumNone, ChecksumNone},
		{"IPv4 header cut short", "4500001c0000", ChecksumNone, ChecksumNone},
		{"IPv4 header wrong", "4500001c00000000400166460a4d00010a4d00020800e5ca12340001", ChecksumWrong, ChecksumRight},
		{"ICMP wrong", "4500001c00000000400166450a4d00010a4d00020800e5cb12340001", ChecksumRight, ChecksumWrong},
		{"fragment", "4500001c00002000400146450a4d00010a4d00020800e5ca12340001", ChecksumRight, ChecksumNone},
		{"payload cut short", "4500001d00000000400166440a4d00010a4d00020800e5ca12340001", ChecksumRight, ChecksumNone},
		{"UDP without", "4500001c00000000401166350a4d00010a4d00020001000200080000", ChecksumRight, ChecksumNone},
		{"UDP over IPv6, odd length", udp6 + "000100020009a3e661", ChecksumNone, ChecksumRight},
		{"UDP over IPv6, wrong", udp6 + "000100020009a3e761", ChecksumNone, ChecksumWrong},
		{"UDP over IPv6 without", udp6 + "000100020009000061", ChecksumNone, ChecksumWrong},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			b, err := hex.DecodeString(row.packet)
			if err != nil {
				t.Fatal(err)
			}
			if header, transport := PacketChecksums(b); header != row.header || transport != row.transport {
				t.Errorf("%v, %v, want %v, %v", header, transport, row.header, row.transport)
			}
		})
	}
}

func FuzzPacketChecksums(f *testing.F) {
	f.Add(icmpEcho)
	f.Add([]byte{0x60, 39: 0, 47: 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		PacketChecksums(b)
		Frame{Data: b}.Checksums()
		if !bytes.Equal(b, before) {
			t.Error("changed the packet")
		}
	})
}
