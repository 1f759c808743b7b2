//go:build linux

package e2e_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// TestSnapLength receives the beginnings of packets, in every way in which a handle receives. Accepted packets go on
// whole; filters may test bytes beyond the snap length; and a part of a packet cannot be sent in place of the whole.
func TestSnapLength(t *testing.T) {
	t.Parallel()
	const snap = 100
	rows := []struct {
		name  string
		layer divert.Layer
		flags divert.Flag
		on    func(*lab.Routed) *lab.Host
	}{
		{"outbound", divert.LayerNetwork, 0, func(r *lab.Routed) *lab.Host { return r.A }},
		{"inbound", divert.LayerNetwork, 0, func(r *lab.Routed) *lab.Host { return r.B }},
		{"forwarded", divert.LayerForward, 0, func(r *lab.Routed) *lab.Host { return r.R }},
		{"outbound, sniffed", divert.LayerNetwork, divert.Sniff, func(r *lab.Routed) *lab.Host { return r.A }},
		{"inbound, sniffed", divert.LayerNetwork, divert.Sniff, func(r *lab.Routed) *lab.Host { return r.B }},
		{"forwarded, sniffed", divert.LayerForward, divert.Sniff, func(r *lab.Routed) *lab.Host { return r.R }},
	}
	routed := lab.HostRouterPeerT(t, lab.LinkOptions{})
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			needEngine(t, routed.A, e.engine)
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					conn, expect := receiver(t, routed.B, routed.B.Addr4())
					// The mark is far behind the snap length.
					d := openAt(t, row.on(routed), "udp.Payload[1000b] == 0xAB", divert.WithLayer(row.layer),
						divert.WithFlags(row.flags), divert.WithEngine(e.engine), divert.WithSnapLength(snap))
					from, err := routed.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer from.Close()
					payload := bytes.Repeat([]byte{1}, 1400)
					if _, err := from.Write(payload); err != nil { // does not match
						t.Fatal(err)
					}
					payload[1000] = 0xAB
					if _, err := from.Write(payload); err != nil {
						t.Fatal(err)
					}
					d.SetReadDeadline(time.Now().Add(5 * time.Second))
					ps := make([]divert.Packet, 1)
					if _, err := d.RecvBatch(ps); err != nil {
						t.Fatal(err)
					}
					p := &ps[0]
					if len(p.Data) != snap || binary.BigEndian.Uint16(p.Data[2:]) != 1428 || !bytes.Equal(p.Data[28:], payload[:snap-28]) {
						t.Errorf("received %d bytes: %.100x", len(p.Data), p.Data)
					}
					if row.flags == 0 {
						if err := d.Send(p); !errors.Is(err, divert.ErrShortBuffer) {
							t.Errorf("a part was sent: %v", err)
						}
						if err := d.Accept(p); err != nil {
							t.Error(err)
						}
					}
					first := bytes.Clone(payload)
					first[1000] = 1
					expect(string(first), string(payload))
					if s := quiet(t, d); s.Matched != 1 || s.Received != 1 || s.DroppedLong != 0 {
						t.Errorf("%+v", s)
					}
				})
			}
		})
	}
}

// TestSnapLengthOfStreams accepts a stream in packets of many segments, of which it receives only the headers.
func TestSnapLengthOfStreams(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		d := openAt(t, pair.A, "outbound and tcp", e, divert.WithSnapLength(divert.MinSnapLength))
		var longest atomic.Int32
		w := batches(t, d, func(ps []divert.Packet) (int, error) {
			for i := range ps {
				var p packet.Parsed
				if !p.Parse(ps[i].Data) || p.TCPOff < 0 || len(ps[i].Data) > divert.MinSnapLength {
					t.Errorf("%.100x", ps[i].Data)
				}
				longest.Store(max(longest.Load(), p.Length))
			}
			return d.AcceptBatch(ps)
		})
		transfer(t, pair.A, pair.B, pair.B.Addr4(), amount(10<<20))
		if n := finish(t, d, w); n == 0 || longest.Load() < 1500 {
			t.Errorf("%d packets, the longest of %d bytes", n, longest.Load())
		}
	})
}

func TestSnapLengthTooShort(t *testing.T) {
	_, err := divert.Open("true", divert.WithSnapLength(divert.MinSnapLength-1))
	if !errors.Is(err, divert.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
