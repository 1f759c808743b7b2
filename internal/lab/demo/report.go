//go:build linux

package demo

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// report writes the steps and their checks.
type report struct {
	Options
	checks, failed int
}

func (r *report) printf(format string, args ...any) { fmt.Fprintf(r.Out, format, args...) }

func (r *report) heading(text string) {
	if r.Bold {
		text = "\x1b[1m" + text + "\x1b[0m"
	}
	r.printf("\n%s\n", text)
}

// check reports whether a value is as expected.
func check[T comparable](r *report, claim string, seen, expected T) bool {
	return r.claim(claim, seen == expected, fmt.Sprintf("expected %v, saw %v", expected, seen))
}

// claim reports a claim and, if it does not hold, the expected and the actual value.
func (r *report) claim(claim string, holds bool, otherwise string) bool {
	r.checks++
	if !holds {
		r.failed++
		r.printf("  FAILED %s: %s\n", claim, otherwise)
		return false
	}
	r.printf("  ok   %s\n", claim)
	return true
}

// line describes a packet in one line.
func line(p *divert.Packet) string {
	var h packet.Parsed
	if !h.ParseExact(p.Data) {
		return fmt.Sprintf("%d bytes that are no IP packet", len(p.Data))
	}
	var src, dst netip.Addr
	if ip := h.IPv4(p.Data); ip != nil {
		src, dst = ip.Src(), ip.Dst()
	} else if ip := h.IPv6(p.Data); ip != nil {
		src, dst = ip.Src(), ip.Dst()
	}
	direction := "in "
	if p.Addr.Outbound {
		direction = "out"
	}
	what := fmt.Sprintf("protocol %d %v > %v", h.Protocol, src, dst)
	if u := h.UDP(p.Data); u != nil {
		what = fmt.Sprintf("UDP %v > %v", netip.AddrPortFrom(src, u.SrcPort()), netip.AddrPortFrom(dst, u.DstPort()))
	} else if t := h.TCP(p.Data); t != nil {
		what = fmt.Sprintf("TCP %v > %v %s", netip.AddrPortFrom(src, t.SrcPort()), netip.AddrPortFrom(dst, t.DstPort()), flagText(t.Flags()))
	}
	return strings.TrimRight(fmt.Sprintf("%s %s %s", direction, what, excerpt(h.Payload(p.Data))), " ")
}

// flagText names the control bits of a segment.
func flagText(f packet.TCPFlags) string {
	var names []string
	for _, n := range [...]struct {
		bit  packet.TCPFlags
		name string
	}{
		{packet.TCPSyn, "SYN"}, {packet.TCPFin, "FIN"}, {packet.TCPRst, "RST"}, {packet.TCPPsh, "PSH"}, {packet.TCPAck, "ACK"},
	} {
		if f&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, "+")
}

// excerpt shows the first line of a payload, or its length if that line is not text.
func excerpt(b []byte) string {
	const most = 40
	if len(b) == 0 {
		return ""
	}
	text, _, _ := strings.Cut(string(b[:min(len(b), most)]), "\r\n")
	for _, c := range text {
		if c < ' ' || c > '~' {
			return fmt.Sprintf("%d bytes", len(b))
		}
	}
	return fmt.Sprintf("%q", text)
}
