package main

import (
	"encoding/hex"
	"net/netip"
	"time"

	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/packet"
)

// jsonPacket is a packet as `dump --json` prints it. Keys are only ever added; keys marked omitempty are absent where
// the packet or the source lacks the value.
type jsonPacket struct {
	Time      time.Time `json:"time"`                // RFC 3339, UTC, nanoseconds
	Timestamp int64     `json:"timestamp,omitempty"` // ticks of the handle's clock; absent for capture files
	Layer     string    `json:"layer,omitempty"`     // network, forward
	Direction string    `json:"direction,omitempty"` // in, out, loopback, forward
	IfIndex   uint32    `json:"ifindex,omitempty"`
	IfName    string    `json:"ifname,omitempty"`
	PID       uint32    `json:"pid,omitempty"`     // process id, if known
	Program   string    `json:"program,omitempty"` // path of its program
	Name      string    `json:"name,omitempty"`    // its name when it sent or received the packet
	Verdict   string    `json:"verdict,omitempty"` // accepted, rewritten, dropped, rejected, sent
	Impostor  bool      `json:"impostor,omitempty"`
	Length    int       `json:"length"`             // of the packet in bytes
	Captured  int       `json:"captured,omitempty"` // bytes present, if fewer than length

	Version       uint8       `json:"version,omitempty"` // 4 or 6; absent if the packet is not IP
	Src           *netip.Addr `json:"src,omitempty"`
	Dst           *netip.Addr `json:"dst,omitempty"`
	TTL           *uint8      `json:"ttl,omitempty"` // or the hop limit
	Protocol      *uint8      `json:"protocol,omitempty"`
	ProtocolName  string      `json:"protocol_name,omitempty"`
	SrcPort       *uint16     `json:"sport,omitempty"`
	DstPort       *uint16     `json:"dport,omitempty"`
	PayloadLength *int        `json:"payload_length,omitempty"`

	Fragment *jsonFragment `json:"fragment,omitempty"`
	TCP      *jsonTCP      `json:"tcp,omitempty"`
	ICMP     *jsonICMP     `json:"icmp,omitempty"`
	Data     string        `json:"data,omitempty"` // hexadecimal, with -x, -X or -A
}

// jsonFragment describes the place of a fragment in its packet.
type jsonFragment struct {
	ID     uint32 `json:"id"`
	Offset int32  `json:"offset"` // in bytes
	More   bool   `json:"more"`
}

// jsonTCP is a TCP header.
type jsonTCP struct {
	Flags  string `json:"flags"` // the letters of the text form
	Seq    uint32 `json:"seq"`
	Ack    uint32 `json:"ack"`
	Window uint16 `json:"window"`
}

// jsonICMP is a header of ICMP or ICMPv6.
type jsonICMP struct {
	Type uint8  `json:"type"`
	Code uint8  `json:"code"`
	Body uint32 `json:"body"`
}

// appendJSON appends a packet as one line of JSON.
func (p *printer) appendJSON(b []byte, r *record) ([]byte, error) {
	j := jsonPacket{Time: r.when.UTC(), IfName: r.device, Direction: directions[r.direction].name, Length: r.length}
	if r.live {
		j.Timestamp = r.addr.Timestamp
		j.Layer = word(r.addr.Layer)
		j.IfIndex = r.addr.Network().IfIdx
		j.Impostor = r.addr.Impostor
	}
	if j.PID = r.pid; j.PID != 0 {
		j.Program, j.Name = r.path, r.addr.ProcessName()
	}
	j.Verdict = r.verdict.String()
	if len(r.data) < r.length {
		j.Captured = len(r.data)
	}
	if p.bytes != bytesNone {
		j.Data = hex.EncodeToString(r.data)
	}
	if capfile.Parse(&p.parsed, r.data, r.length) {
		j.setPacket(r.data, &p.parsed)
	}
	return appendJSONLine(b, &j)
}

// setPacket sets the values found in the headers.
func (j *jsonPacket) setPacket(data []byte, p *packet.Parsed) {
	src, dst := addresses(data, p)
	ttl, protocol, payload := data[8], p.Protocol, payloadLength(p)
	if p.Family == 6 {
		ttl = data[7]
	}
	j.Version, j.Src, j.Dst, j.TTL, j.Protocol, j.PayloadLength = p.Family, &src, &dst, &ttl, &protocol, &payload
	j.ProtocolName = protocolNames[protocol]
	if sport, dport, ok := ports(data, p); ok {
		j.SrcPort, j.DstPort = &sport, &dport
	}
	if p.Fragment {
		j.Fragment = &jsonFragment{fragmentID(data, p), p.FragOff, p.MF}
	}
	if h := p.TCP(data); h != nil {
		j.TCP = &jsonTCP{string(appendTCPFlags(nil, h.Flags())), h.Seq(), h.Ack(), h.Window()}
	}
	h := p.ICMP(data)
	if h == nil {
		h = p.ICMPv6(data)
	}
	if h != nil {
		j.ICMP = &jsonICMP{h.Type(), h.Code(), h.Body()}
	}
}
