//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// A router lengthens a client's text and removes the addition from the server's answer, while every twentieth packet is
// lost: the client must read its own text, and the server must have read more.
func TestStreamEditedBothWays(t *testing.T) {
	t.Parallel()
	r := lab.HostRouterPeerT(t, lab.LinkOptions{})
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			l, err := r.B.Listen("tcp", netip.AddrPortFrom(f.addr(r.B), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			served := make(chan []byte, 1)
			go func() {
				var got bytes.Buffer
				if c, err := l.Accept(); err == nil {
					_, _ = io.Copy(c, io.TeeReader(c, &got))
					c.Close()
				}
				served <- got.Bytes()
			}()
			port := l.Addr().(*net.TCPAddr).Port
			d := openAt(t, r.R, fmt.Sprintf("tcp.SrcPort == %d or tcp.DstPort == %d", port, port), divert.WithLayer(divert.LayerForward), divert.WithSegments())
			var s packet.Stream
			lost := rand.New(rand.NewPCG(1, 2))
			longer := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("x"), []byte("12")) }
			shorter := func(b []byte) []byte {
				return bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("1"), []byte("x")), []byte("2"), nil)
			}
			w := each(t, d, func(p *divert.Packet) {
				edit := shorter
				if int(p.Dst().Port()) == port {
					edit = longer
				}
				clampMSS(p, 1000)
				if err := s.Edit(p, edit); err != nil {
					if !errors.Is(err, packet.ErrGap) {
						t.Error(err)
					}
					return // it is retransmitted
				}
				if lost.IntN(20) == 0 {
					return
				}
				if err := d.Send(p); err != nil {
					t.Error(err)
				}
			})
			sent, letters := make([]byte, amount(400_000)), rand.New(rand.NewPCG(3, 4))
			for i := range sent {
				sent[i] = 'a' + byte(letters.IntN(26))
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, err := r.A.Dial(ctx, "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			go func() {
				if _, err := c.Write(sent); err != nil {
					t.Errorf("write: %v", err)
				}
				_ = c.(*net.TCPConn).CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("read %d bytes of %d, equal %t: %v", len(got), len(sent), bytes.Equal(got, sent), err)
			}
			if !bytes.Equal(<-served, longer(sent)) {
				t.Error("the server did not read the lengthened text")
			}
			_ = d.Close()
			w.wait()
		})
	}
}

// clampMSS limits the segment size that a SYN requests.
func clampMSS(p *divert.Packet, size uint16) {
	var h packet.Parsed
	if !h.Parse(p.Data) || h.TCPOff < 0 || h.TCP(p.Data).Flags()&packet.TCPSyn == 0 {
		return
	}
	if o := h.TCP(p.Data).Options(); len(o) >= 4 && o[0] == 2 {
		binary.BigEndian.PutUint16(o[2:], min(size, binary.BigEndian.Uint16(o[2:])))
		p.Changed()
	}
}
