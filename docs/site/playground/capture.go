package playground

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/packet"
)

// Capture holds packets on which filters can be tried.
type Capture struct {
	packets []captured
	begin   time.Time
	cut     bool     // the file has more packets
	notes   []string // about the file
}

// captured is a packet of a capture.
type captured struct {
	data []byte
	addr packet.Address
	time time.Time
}

// mostPackets limits the packets kept from a file.
const mostPackets = 100_000

// Read reads a capture file. It keeps the packets before an error, and makes the error a note.
func Read(file []byte) (*Capture, error) {
	r, err := capfile.NewReader(bytes.NewReader(file), packet.LayerNetwork)
	if err != nil {
		return nil, err
	}
	c := &Capture{}
	var p capfile.Packet
	for {
		err := r.Next(&p)
		if err == io.EOF {
			break
		}
		if err != nil && len(c.packets) == 0 {
			return nil, err
		}
		if err != nil {
			c.notes = append(c.notes, err.Error())
			break
		}
		if c.cut = len(c.packets) == mostPackets; c.cut {
			c.notes = append(c.notes, fmt.Sprintf("only the first %d packets are read", mostPackets))
			break
		}
		c.packets = append(c.packets, captured{bytes.Clone(p.Data), p.Addr, p.Time})
	}
	c.notes = append(c.notes, r.Complaints()...)
	if len(c.packets) == 0 {
		return nil, errors.New(strings.Join(append([]string{"the file has no IP packets"}, c.notes...), "; "))
	}
	c.begin = c.packets[0].time
	return c, nil
}

// Row is a packet in the page's form.
type Row struct {
	Number  int    `json:"number"`
	Time    string `json:"time"` // seconds since the first packet
	Way     string `json:"way"`  // in, out or loopback
	Text    string `json:"text"`
	Match   bool   `json:"match"`
	Unknown string `json:"unknown"` // why the result is unknown
}

// Result is the result of a filter for a capture.
type Result struct {
	Matches int      `json:"matches"`
	Packets int      `json:"packets"`
	Rows    []Row    `json:"rows"`
	Notes   []string `json:"notes"`
}

// Match applies a compiled filter to each packet. It returns at most most rows.
func (c *Capture) Match(a *Answer, most int) Result {
	r := Result{Packets: len(c.packets), Notes: c.notes, Rows: []Row{}}
	for i := range c.packets {
		p := &c.packets[i]
		match, unknown := false, ""
		if a.program != nil {
			var err error
			if match, err = a.program.Eval(p.data, c.address(p, a)); err != nil {
				unknown = reason(err)
			}
		}
		if match {
			r.Matches++
		}
		if len(r.Rows) < most {
			r.Rows = append(r.Rows, Row{i + 1, seconds(p.time.Sub(c.begin)), way(&p.addr), summary(p.data), match, unknown})
		}
	}
	return r
}

// Step is an executed test.
type Step struct {
	Test  string `json:"test"`
	Value string `json:"value"`
	Holds bool   `json:"holds"`
}

// Explain returns the tests that a filter executes for the packet of a row, by its number.
func (c *Capture) Explain(a *Answer, number int) []Step {
	steps := []Step{}
	if a.program == nil || number < 1 || number > len(c.packets) {
		return steps
	}
	p := &c.packets[number-1]
	all, _, _ := a.program.Explain(p.data, c.address(p, a)) // the row shows the error
	for _, s := range all {
		steps = append(steps, Step{s.Test, s.Value, s.Result})
	}
	return steps
}

// address returns the address of a packet at the layer of the filter.
func (c *Capture) address(p *captured, a *Answer) *packet.Address {
	addr := p.addr
	addr.Layer = a.program.Layer()
	return &addr
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 6, 64) }

func way(a *packet.Address) string {
	switch {
	case a.Loopback:
		return "loopback"
	case a.Outbound:
		return "out"
	}
	return "in"
}

// summary describes a packet in one line.
func summary(b []byte) string {
	var p packet.Parsed
	if !p.Parse(b) {
		return "no IP packet"
	}
	var src, dst netip.Addr
	if ip := p.IPv4(b); ip != nil {
		src, dst = ip.Src(), ip.Dst()
	} else {
		src, dst = p.IPv6(b).Src(), p.IPv6(b).Dst()
	}
	var from, to uint16
	what := fmt.Sprintf("protocol %d", p.Protocol)
	ports := true
	switch tcp, udp := p.TCP(b), p.UDP(b); {
	case tcp != nil:
		from, to, what = tcp.SrcPort(), tcp.DstPort(), "TCP"+flags(tcp.Flags())
	case udp != nil:
		from, to, what = udp.SrcPort(), udp.DstPort(), "UDP"
	case p.ICMP(b) != nil:
		ports, what = false, fmt.Sprintf("ICMP type %d code %d", p.ICMP(b).Type(), p.ICMP(b).Code())
	case p.ICMPv6(b) != nil:
		ports, what = false, fmt.Sprintf("ICMPv6 type %d code %d", p.ICMPv6(b).Type(), p.ICMPv6(b).Code())
	default:
		ports = false
	}
	if p.Fragment {
		what += ", fragment"
	}
	if ports {
		return fmt.Sprintf("%v > %v %s, payload %d", netip.AddrPortFrom(src, from), netip.AddrPortFrom(dst, to), what, p.PayloadLen)
	}
	return fmt.Sprintf("%v > %v %s, length %d", src, dst, what, p.Length)
}

// flags returns the flags of a segment, each with a space before it.
func flags(f packet.TCPFlags) (text string) {
	for _, flag := range []struct {
		bit  packet.TCPFlags
		name string
	}{{packet.TCPSyn, " SYN"}, {packet.TCPAck, " ACK"}, {packet.TCPPsh, " PSH"}, {packet.TCPFin, " FIN"}, {packet.TCPRst, " RST"}, {packet.TCPUrg, " URG"}} {
		if f&flag.bit != 0 {
			text += flag.name
		}
	}
	return text
}
