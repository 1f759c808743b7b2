package main

import (
	"encoding/json"
	"net/netip"
	"time"
)

// alert is a match of a rule.
type alert struct {
	rule          *rule
	at            time.Time
	src, dst      netip.AddrPort
	protocol, app string
	flow          uint64
	dropped       bool
}

// event is an alert in Suricata's format: EVE JSON, one object per line.
type event struct {
	Timestamp string `json:"timestamp"`
	FlowID    uint64 `json:"flow_id,omitempty"`
	EventType string `json:"event_type"` // alert
	SrcIP     string `json:"src_ip"`
	SrcPort   uint16 `json:"src_port,omitempty"`
	DestIP    string `json:"dest_ip"`
	DestPort  uint16 `json:"dest_port,omitempty"`
	Proto     string `json:"proto"` // TCP, UDP, ICMP, IP
	AppProto  string `json:"app_proto,omitempty"`
	Alert     struct {
		Action      string `json:"action"` // allowed, blocked
		GID         int    `json:"gid"`
		SignatureID int    `json:"signature_id"`
		Rev         int    `json:"rev"`
		Signature   string `json:"signature"`
		Category    string `json:"category"` // short name of the rule's classtype
		Severity    int    `json:"severity"`
	} `json:"alert"`
}

// protocolNames are the names in EVE.
var protocolNames = map[string]string{"tcp": "TCP", "udp": "UDP", "icmp": "ICMP", "ip": "IP"}

// event returns the alert as an EVE event.
func (a *alert) event() *event {
	v := &event{
		Timestamp: a.at.Format("2006-01-02T15:04:05.000000-0700"), FlowID: a.flow, EventType: "alert",
		SrcIP: a.src.Addr().StringExpanded(), SrcPort: a.src.Port(), DestIP: a.dst.Addr().StringExpanded(), DestPort: a.dst.Port(),
		Proto: protocolNames[a.protocol], AppProto: a.app,
	}
	r := a.rule
	v.Alert.Action = "allowed"
	if a.dropped {
		v.Alert.Action = "blocked"
	}
	v.Alert.GID, v.Alert.SignatureID, v.Alert.Rev, v.Alert.Signature = r.gid, r.sid, r.revision, r.message
	v.Alert.Category, v.Alert.Severity = r.class, r.priority
	return v
}

// eveWriter returns a function that writes alerts.
func eveWriter(out *json.Encoder, failed func(error)) func(*alert) {
	return func(a *alert) {
		if err := out.Encode(a.event()); err != nil {
			failed(err)
		}
	}
}
