//go:build linux

package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// change is a replacement in payloads.
type change struct{ from, to string }

// rewrite changes datagrams, whose length may change, and the payload of TCP, whose length must not.
func (d *demo) rewrite() error {
	if err := d.rewriteUDP(); err != nil {
		return err
	}
	return d.rewriteHTTP()
}

// rewriteUDP changes outbound datagrams.
func (d *demo) rewriteUDP() error {
	c := change{"meet at noon", "meet at a quarter past twelve"}
	wire, err := d.LinkB.Capture()
	if err != nil {
		return err
	}
	defer wire.Close()
	h, err := d.show(fmt.Sprintf("outbound and udp.DstPort == %d", portText), 0)
	if err != nil {
		return err
	}
	defer h.Close()
	finish := serve(h, c.apply(h))
	for _, addr := range d.B.Addrs() {
		at := netip.AddrPortFrom(addr, portText)
		got, state, err := d.sendText(at, c, wire)
		if err != nil {
			return fmt.Errorf("datagram over %s: %w", familyOf(addr), errors.Join(err, finish()))
		}
		check(&d.report, fmt.Sprintf("%s: A sends %q, B receives %q", familyOf(addr), c.from, got), got, c.to)
		check(&d.report, familyOf(addr)+": on the wire its UDP checksum is right", state, lab.ChecksumRight)
	}
	if err := finish(); err != nil {
		return err
	}
	s, err := d.counters(h)
	if err == nil {
		check(&d.report, "both went on as the packets they were, none was sent anew", s.Reinjected, 2)
	}
	return err
}

// sendText sends a datagram and returns the received text, and the state of the changed frame's checksum.
func (d *demo) sendText(to netip.AddrPort, c change, wire *lab.Capture) (got string, state lab.ChecksumState, err error) {
	in, err := d.B.ListenPacket("udp", to.String())
	if err != nil {
		return "", 0, err
	}
	defer in.Close()
	out, err := d.A.Dial(d.ctx, "udp", to.String())
	if err != nil {
		return "", 0, err
	}
	defer out.Close()
	if _, err := io.WriteString(out, c.from); err != nil {
		return "", 0, err
	}
	b := make([]byte, 2000)
	in.SetReadDeadline(time.Now().Add(d.patience))
	n, _, err := in.ReadFrom(b)
	if err != nil {
		return "", 0, err
	}
	state, err = d.checksumOf(wire, c.to)
	return string(b[:n]), state, err
}

// checksumOf waits for an inbound frame on the wire with a text and checks its transport checksum.
func (d *demo) checksumOf(wire *lab.Capture, text string) (lab.ChecksumState, error) {
	ctx, cancel := context.WithTimeout(d.ctx, d.patience)
	defer cancel()
	f, err := wire.NextMatch(ctx, func(f lab.Frame) bool { return !f.Outgoing && bytes.Contains(f.Data, []byte(text)) })
	if err != nil {
		return 0, fmt.Errorf("no frame with %q on the wire: %w", text, err)
	}
	_, transport := f.Checksums()
	return transport, nil
}

// rewriteHTTP changes a form on its way to the server, and the page on its way back.
func (d *demo) rewriteHTTP() error {
	form, answer := change{"colour=red", "colour=tan"}, change{page, pageChanged}
	web, err := d.serveHTTP()
	if err != nil {
		return err
	}
	defer web.Close()
	wire, err := d.LinkB.Capture()
	if err != nil {
		return err
	}
	defer wire.Close()
	h, err := d.show(fmt.Sprintf("tcp.PayloadLength > 0 and remotePort == %d", portHTTP), 0)
	if err != nil {
		return err
	}
	defer h.Close()
	out, in := form.apply(h), answer.apply(h)
	finish := serve(h, func(ps []divert.Packet) error {
		for i := range ps {
			f := in
			if ps[i].Addr.Outbound {
				f = out
			}
			if err := f(ps[i : i+1]); err != nil {
				return err
			}
		}
		return nil
	})
	for _, addr := range d.B.Addrs() {
		received, got, err := d.post(web, addr, form.from)
		if err != nil {
			return fmt.Errorf("HTTP over %s: %w", familyOf(addr), errors.Join(err, finish()))
		}
		check(&d.report, fmt.Sprintf("%s: A posts %q, the server receives %q", familyOf(addr), form.from, received), received, form.to)
		state, err := d.checksumOf(wire, form.to)
		if err != nil {
			return errors.Join(err, finish())
		}
		check(&d.report, familyOf(addr)+": on the wire its TCP checksum is right", state, lab.ChecksumRight)
		check(&d.report, fmt.Sprintf("%s: B answers %q, A receives %q", familyOf(addr), answer.from, got), got, answer.to)
	}
	if err := finish(); err != nil {
		return err
	}
	_, err = d.counters(h)
	return err
}

// apply returns a function for each batch of packets: it replaces the text in the payloads that contain it, sets the
// lengths in the headers if they change, and sends all packets on. Send computes the checksums that the address marks
// as missing.
func (c change) apply(h *divert.Handle) func([]divert.Packet) error {
	return func(ps []divert.Packet) error {
		for i := range ps {
			p := &ps[i]
			if b, ok := c.replace(p.Data); ok {
				p.Data = b
				p.Addr.IPChecksum, p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false, false
			}
		}
		_, err := h.SendBatch(ps)
		return err
	}
}

// replace returns the packet with the text in its payload replaced, and whether it contained that text.
func (c change) replace(b []byte) ([]byte, bool) {
	var h packet.Parsed
	if !h.ParseExact(b) || !bytes.Contains(h.Payload(b), []byte(c.from)) {
		return nil, false
	}
	payload := bytes.ReplaceAll(h.Payload(b), []byte(c.from), []byte(c.to))
	b = append(b[:h.PayloadOff:h.PayloadOff], payload...)
	if ip := h.IPv4(b); ip != nil {
		ip.SetLength(uint16(len(b)))
	} else if ip := h.IPv6(b); ip != nil {
		ip.SetLength(uint16(len(b) - packet.IPv6HeaderLen))
	}
	if u := h.UDP(b); u != nil {
		u.SetLength(uint16(packet.UDPHeaderLen + len(payload)))
	}
	return b, true
}
