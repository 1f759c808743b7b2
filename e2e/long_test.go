//go:build linux

package e2e_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// maxReceived is the most bytes received of a diverted packet.
const maxReceived = 65531

// packetLength returns the length in an IP header.
func packetLength(b []byte) int {
	if b[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(b[2:]))
	}
	return int(binary.BigEndian.Uint16(b[4:])) + packet.IPv6HeaderLen
}

// TestLongestPackets sends datagrams of every length around three limits: the link's MTU, the most that the kernel
// delivers of a packet, and the longest possible packet. Whichever way a handle lets packets go on, they arrive whole.
func TestLongestPackets(t *testing.T) {
	t.Parallel()
	modes := []struct {
		name  string
		on    func(*lab.Routed) *lab.Host
		text  string
		layer divert.Layer
		flags divert.Flag
		send  bool // with its bytes, rather than accepting it
	}{
		{"outbound", onA, "outbound", divert.LayerNetwork, 0, false},
		{"outbound, sent back", onA, "outbound", divert.LayerNetwork, 0, true},
		{"inbound", onB, "inbound", divert.LayerNetwork, 0, false},
		{"inbound, sent back", onB, "inbound", divert.LayerNetwork, 0, true},
		{"forwarded", onR, "true", divert.LayerForward, 0, false},
		{"outbound, sniffed", onA, "outbound", divert.LayerNetwork, divert.Sniff, false},
		{"inbound, sniffed", onB, "inbound", divert.LayerNetwork, divert.Sniff, false},
		{"forwarded, sniffed", onR, "true", divert.LayerForward, divert.Sniff, false},
		{"outbound, dropped", onA, "outbound", divert.LayerNetwork, divert.Drop, false},
		{"inbound, dropped", onB, "inbound", divert.LayerNetwork, divert.Drop, false},
		{"forwarded, dropped", onR, "true", divert.LayerForward, divert.Drop, false},
	}
	for _, e := range engines {
		for _, f := range families {
			t.Run(e.name+"/"+f.name, func(t *testing.T) {
				mtu := 65535 // so that packets are forwarded whole
				if f.name == "IPv6" {
					mtu = 1500 // so that they are reassembled
				}
				r := lab.HostRouterPeerT(t, lab.LinkOptions{MTU: mtu})
				needEngine(t, r.A, e.engine)
				header, lengths := 28, []int{1499, 1500, 1501, 65499, 65500, 65501, 65530, 65531, 65532, 65533, 65534, 65535}
				if f.name == "IPv6" {
					header = 48
					lengths = append(lengths, 65536, 65537, 65573, 65574, 65575)
				}
				conn, err := r.B.ListenPacket("udp", netip.AddrPortFrom(f.addr(r.B), 0).String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				from := dialUDP(t, r.A, conn.LocalAddr())
				for _, m := range modes {
					t.Run(m.name, func(t *testing.T) {
						d := openAt(t, m.on(r), fmt.Sprintf("(%s) and udp.DstPort == %d and udp.PayloadLength > 1000", m.text, addrPort(conn).Port()),
							divert.WithLayer(m.layer), divert.WithFlags(m.flags), divert.WithEngine(e.engine))
						buf := make([]byte, 1<<16)
						ps := make([]divert.Packet, 1)
						lengths := lengths
						if m.layer == divert.LayerForward && mtu == 1500 {
							lengths = []int{1499, 1500}
						}
						for i, length := range lengths {
							payload := bytes.Repeat([]byte{byte(i + 1)}, length-header)
							if _, err := from.Write(payload); err != nil {
								t.Fatalf("%d bytes: %v", length, err)
							}
							if m.flags&divert.Drop != 0 {
								continue
							}
							d.SetReadDeadline(time.Now().Add(5 * time.Second))
							if _, err := d.RecvBatch(ps); err != nil {
								t.Fatalf("%d bytes are not received: %v", length, err)
							}
							p := &ps[0]
							whole := m.flags&divert.Sniff != 0 && m.layer == divert.LayerNetwork && e.engine == divert.EngineKernel
							want := length
							if !whole {
								want = min(length, maxReceived)
							}
							if len(p.Data) != want || packetLength(p.Data) != length || !bytes.HasSuffix(payload, p.Data[header:]) && len(p.Data) == length {
								t.Errorf("received %d bytes of a packet of %d with %d in its header, want %d", len(p.Data), length, packetLength(p.Data), want)
							}
							switch {
							case m.flags != 0:
							case m.send:
								err = d.Send(p)
							default:
								err = d.Accept(p)
							}
							if err != nil {
								t.Errorf("%d bytes: %v", length, err)
							}
							conn.SetReadDeadline(time.Now().Add(5 * time.Second))
							n, _, err := conn.ReadFrom(buf)
							if err != nil || !bytes.Equal(buf[:n], payload) {
								t.Errorf("of %d bytes %d arrive: %v", length, n+header, err)
							}
						}
						s := quiet(t, d)
						balanced(t, s)
						n := uint64(len(lengths))
						dropped := uint64(0)
						if m.flags&divert.Drop != 0 {
							dropped = n
						}
						if s.Matched != n || s.Received != n-dropped || s.Dropped != dropped || s.DroppedLong != 0 || s.Failed != 0 {
							t.Errorf("of %d packets: %+v", n, s)
						}
						conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
						if n, _, err := conn.ReadFrom(buf); err == nil {
							t.Errorf("%d bytes more arrive", n)
						}
					})
				}
			})
		}
	}
}

func onA(r *lab.Routed) *lab.Host { return r.A }
func onB(r *lab.Routed) *lab.Host { return r.B }
func onR(r *lab.Routed) *lab.Host { return r.R }

// TestSendOfAPartOfAPacket: the received part of a packet that is too long for delivery cannot be sent with changes;
// the error names the remedy, and the packet still waits.
func TestSendOfAPartOfAPacket(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The filter tests a byte that is not delivered.
		d := openAt(t, pair.A, "outbound and udp.Payload[65506] == 7", e)
		payload := bytes.Repeat([]byte{7}, 65507)
		if _, err := dialUDP(t, pair.A, conn.LocalAddr()).Write(payload); err != nil {
			t.Fatal(err)
		}
		d.SetReadDeadline(time.Now().Add(5 * time.Second))
		ps := make([]divert.Packet, 1)
		if _, err := d.RecvBatch(ps); err != nil {
			t.Fatal(err)
		}
		p := &ps[0]
		p.Data[100]++
		p.Addr.UDPChecksum = false
		if err := d.Send(p); !errors.Is(err, divert.ErrShortBuffer) || !strings.Contains(err.Error(), "Accept") {
			t.Errorf("%v, want ErrShortBuffer and a remedy", err)
		}
		if err := d.Accept(p); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1<<16)
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, _, err := conn.ReadFrom(buf); err != nil || !bytes.Equal(buf[:n], payload) {
			t.Errorf("%d bytes arrive: %v", n, err)
		}
	})
}
