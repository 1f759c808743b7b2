//go:build linux

package nexthop

import (
	"encoding/binary"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// route is a route as an answer to RTM_GETROUTE describes it.
type route struct {
	typ     uint8 // RTN_…
	source  uint8 // bits of the source that it is for
	flags   uint32
	device  uint32
	gateway netip.Addr
	mtu     uint32
	several bool // next hops, between which the kernel chooses by the flow
	realm   bool
	odd     bool // it wraps packets, or its gateway is of the other family
}

// question is the body of RTM_GETROUTE: struct rtmsg of linux/rtnetlink.h, and the ends of a packet.
func question(t target, flags uint32) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = unix.AF_INET, 32
	if t.to.Is6() {
		b[0], b[1] = unix.AF_INET6, 128
	}
	b[3] = t.tos
	binary.NativeEndian.PutUint32(b[8:], flags)
	e := netlink.NewAttributeEncoder()
	e.Bytes(unix.RTA_DST, t.to.AsSlice())
	if t.from.IsValid() {
		b[2] = 128
		e.Bytes(unix.RTA_SRC, t.from.AsSlice())
	}
	attrs, _ := e.Encode() // fails only for attributes that are too long
	return append(b, attrs...)
}

// parseRoute reads the body of RTM_NEWROUTE.
func parseRoute(b []byte) (r route, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	r.source, r.typ = b[2], b[7]
	r.flags = binary.NativeEndian.Uint32(b[8:])
	d, err := netlink.NewAttributeDecoder(b[unix.SizeofRtMsg:])
	if err != nil {
		return r, false
	}
	for d.Next() {
		switch d.Type() {
		case unix.RTA_OIF:
			r.device = d.Uint32()
		case unix.RTA_GATEWAY:
			a, isAddr := netip.AddrFromSlice(d.Bytes())
			r.gateway, r.odd = a, r.odd || !isAddr
		case unix.RTA_METRICS:
			d.Nested(func(m *netlink.AttributeDecoder) error {
				for m.Next() {
					if m.Type() == unix.RTAX_MTU {
						r.mtu = m.Uint32()
					}
				}
				return m.Err()
			})
		case unix.RTA_MULTIPATH:
			r.several = true
		case unix.RTA_FLOW:
			r.realm = true
		case unix.RTA_VIA, unix.RTA_ENCAP, unix.RTA_ENCAP_TYPE, unix.RTA_NEWDST:
			r.odd = true
		case attrNexthopID:
			r.several = r.several || r.device == 0 // net.ipv4.nexthop_compat_mode=0 hides the hops, which come first
		}
	}
	return r, d.Err() == nil
}

// ruleHeaderLen is the length of struct fib_rule_hdr of linux/fib_rules.h, in bytes.
const ruleHeaderLen = 12

const (
	suppressNone  = 1<<32 - 1 // of a rule's attributes that suppress routes
	attrNexthopID = 30        // RTA_NH_ID
)

// plainRule reports whether a rule, the body of RTM_NEWRULE, is for packets by their destination only, and leads to a table.
func plainRule(b []byte) bool {
	const sourceLen, tos, action, flags = 2, 3, 7, 8
	const invert = 2
	if len(b) < ruleHeaderLen || b[sourceLen] != 0 || b[tos] != 0 || b[action] != unix.FR_ACT_TO_TBL || binary.NativeEndian.Uint32(b[flags:])&invert != 0 {
		return false
	}
	d, err := netlink.NewAttributeDecoder(b[ruleHeaderLen:])
	if err != nil {
		return false
	}
	for d.Next() {
		switch d.Type() {
		case unix.FRA_DST, unix.FRA_PRIORITY, unix.FRA_TABLE, unix.FRA_PAD, unix.FRA_PROTOCOL:
		case unix.FRA_SUPPRESS_IFGROUP, unix.FRA_SUPPRESS_PREFIXLEN:
			if d.Uint32() != suppressNone {
				return false
			}
		default:
			return false
		}
	}
	return d.Err() == nil
}

// Messages and attributes of linux/xfrm.h.
const (
	msgNewSPDInfo = 0x24
	msgGetSPDInfo = 0x25
	attrSPDInfo   = 1
)

// noPolicies reports whether the body of XFRM_MSG_NEWSPDINFO says that there are no policies for outgoing and
// forwarded packets, those of single sockets included.
func noPolicies(b []byte) bool {
	const in, counters = 0, 6 // struct xfrmu_spdinfo: in, out, forwarded, and the same of sockets
	if len(b) < 4 {
		return false
	}
	d, err := netlink.NewAttributeDecoder(b[4:])
	if err != nil {
		return false
	}
	told := false
	for d.Next() {
		if d.Type() != attrSPDInfo {
			continue
		}
		counts := d.Bytes()
		if len(counts) < 4*counters {
			return false
		}
		told = true
		for i := range counters {
			if i%3 != in && binary.NativeEndian.Uint32(counts[4*i:]) != 0 {
				return false
			}
		}
	}
	return told && d.Err() == nil
}
