//go:build linux

package nexthop

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// message returns the body of a message: a head, and attributes.
func message(t testing.TB, head []byte, attrs func(*netlink.AttributeEncoder)) []byte {
	t.Helper()
	e := netlink.NewAttributeEncoder()
	if attrs != nil {
		attrs(e)
	}
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return append(head, b...)
}

func routeHead(typ, source uint8, flags uint32) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[2], b[7] = source, typ
	binary.NativeEndian.PutUint32(b[8:], flags)
	return b
}

func TestHopOfARoute(t *testing.T) {
	gateway := netip.MustParseAddr("10.77.0.9")
	via := func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.RTA_OIF, 7)
		e.Bytes(unix.RTA_GATEWAY, gateway.AsSlice())
		e.Nested(unix.RTA_METRICS, func(m *netlink.AttributeEncoder) error {
			m.Uint32(unix.RTAX_MTU, 1400)
			m.Uint32(unix.RTAX_RTT, 3)
			return nil
		})
	}
	and := func(more func(*netlink.AttributeEncoder)) func(*netlink.AttributeEncoder) {
		return func(e *netlink.AttributeEncoder) { via(e); more(e) }
	}
	unicast := routeHead(unix.RTN_UNICAST, 0, 0)
	device := func(e *netlink.AttributeEncoder) { e.Uint32(unix.RTA_OIF, 7) }
	for _, row := range []struct {
		name         string
		taken, entry []byte
		six          bool
		want         hop
	}{
		{"by a gateway", message(t, unicast, via), message(t, unicast, via), false, hop{ok: true, device: 7, gateway: gateway, mtu: 1400}},
		{"on the link", message(t, unicast, device), message(t, unicast, device), false, hop{ok: true, device: 7}},
		{"this host", message(t, routeHead(unix.RTN_LOCAL, 0, 0), device), message(t, routeHead(unix.RTN_LOCAL, 0, 0), device), false,
			hop{ok: true, local: true, device: 7}},
		{"a realm", message(t, unicast, via), message(t, unicast, and(func(e *netlink.AttributeEncoder) { e.Uint32(unix.RTA_FLOW, 5) })), false,
			hop{ok: true, device: 7, gateway: gateway, mtu: 1400, realm: true}},
		{"all IPv4 routes are clones", message(t, routeHead(unix.RTN_UNICAST, 0, unix.RTM_F_CLONED), device), message(t, unicast, device), false,
			hop{ok: true, device: 7}},
		{"an exception of IPv6", message(t, routeHead(unix.RTN_UNICAST, 0, unix.RTM_F_CLONED), device), message(t, unicast, device), true, hop{}},
		{"broadcast", message(t, routeHead(unix.RTN_BROADCAST, 0, 0), device), message(t, routeHead(unix.RTN_BROADCAST, 0, 0), device), false, hop{}},
		{"no device", message(t, unicast, nil), message(t, unicast, nil), false, hop{}},
		{"several hops", message(t, unicast, via), message(t, unicast, func(e *netlink.AttributeEncoder) { e.Bytes(unix.RTA_MULTIPATH, make([]byte, 8)) }), false, hop{}},
		{"hops in an object", message(t, unicast, via), message(t, unicast, func(e *netlink.AttributeEncoder) { e.Uint32(attrNexthopID, 3) }), false, hop{}},
		{"one hop in an object", message(t, unicast, via), message(t, unicast, and(func(e *netlink.AttributeEncoder) { e.Uint32(attrNexthopID, 3) })), false,
			hop{ok: true, device: 7, gateway: gateway, mtu: 1400}},
		{"for a source", message(t, unicast, via), message(t, routeHead(unix.RTN_UNICAST, 64, 0), via), true, hop{}},
		{"it wraps packets", message(t, unicast, and(func(e *netlink.AttributeEncoder) { e.Uint16(unix.RTA_ENCAP_TYPE, 1) })), message(t, unicast, via), false, hop{}},
		{"a gateway of IPv6", message(t, unicast, and(func(e *netlink.AttributeEncoder) { e.Bytes(unix.RTA_VIA, make([]byte, 18)) })), message(t, unicast, via), false, hop{}},
		{"a gateway of 3 bytes", message(t, unicast, func(e *netlink.AttributeEncoder) { device(e); e.Bytes(unix.RTA_GATEWAY, []byte{1, 2, 3}) }),
			message(t, unicast, device), false, hop{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			taken, ok := parseRoute(row.taken)
			entry, entryOK := parseRoute(row.entry)
			if !ok || !entryOK {
				t.Fatal("does not parse")
			}
			got := hopOf(&taken, &entry, row.six)
			if got.ok != row.want.ok || got.ok && got != row.want {
				t.Errorf("%+v, want %+v", got, row.want)
			}
		})
	}
}

func TestPlainRule(t *testing.T) {
	head := func(change func([]byte)) []byte {
		b := make([]byte, ruleHeaderLen)
		b[0], b[7] = unix.AF_INET, unix.FR_ACT_TO_TBL
		if change != nil {
			change(b)
		}
		return b
	}
	attr := func(typ uint16, v uint32) func(*netlink.AttributeEncoder) {
		return func(e *netlink.AttributeEncoder) {
			e.Uint32(unix.FRA_TABLE, 254)
			e.Uint32(typ, v)
		}
	}
	for _, row := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"for all packets", message(t, head(nil), attr(unix.FRA_PRIORITY, 32766)), true},
		{"by destination", message(t, head(func(b []byte) { b[1] = 24 }), attr(unix.FRA_DST, 1)), true},
		{"nothing is suppressed", message(t, head(nil), attr(unix.FRA_SUPPRESS_PREFIXLEN, suppressNone)), true},
		{"default routes are suppressed", message(t, head(nil), attr(unix.FRA_SUPPRESS_PREFIXLEN, 0)), false},
		{"by source", message(t, head(func(b []byte) { b[2] = 24 }), attr(unix.FRA_SRC, 1)), false},
		{"by type of service", message(t, head(func(b []byte) { b[3] = 8 }), nil), false},
		{"by mark", message(t, head(nil), attr(unix.FRA_FWMARK, 1)), false},
		{"of VRFs", message(t, head(nil), attr(unix.FRA_L3MDEV, 1)), false},
		{"refusing", message(t, head(func(b []byte) { b[7] = unix.FR_ACT_PROHIBIT }), nil), false},
		{"for all but", message(t, head(func(b []byte) { binary.NativeEndian.PutUint32(b[8:], 2) }), nil), false},
		{"that is not known", message(t, head(nil), attr(1000, 1)), false},
		{"too short", make([]byte, ruleHeaderLen-1), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := plainRule(row.b); got != row.want {
				t.Errorf("%t", got)
			}
		})
	}
}

func TestNoPolicies(t *testing.T) {
	counts := func(n ...uint32) []byte {
		var b []byte
		for _, v := range n {
			b = binary.NativeEndian.AppendUint32(b, v)
		}
		return message(t, make([]byte, 4), func(e *netlink.AttributeEncoder) { e.Bytes(attrSPDInfo, b) })
	}
	for _, row := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"none", counts(0, 0, 0, 0, 0, 0), true},
		{"of incoming packets", counts(3, 0, 0, 1, 0, 0), true},
		{"of outgoing packets", counts(0, 1, 0, 0, 0, 0), false},
		{"of forwarded packets", counts(0, 0, 1, 0, 0, 0), false},
		{"of a socket", counts(0, 0, 0, 0, 1, 0), false},
		{"not told", counts(), false},
		{"no attribute", make([]byte, 4), false},
		{"too short", nil, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if got := noPolicies(row.b); got != row.want {
				t.Errorf("%t", got)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(message(f, routeHead(unix.RTN_UNICAST, 0, 0), func(e *netlink.AttributeEncoder) {
		e.Uint32(unix.RTA_OIF, 7)
		e.Bytes(unix.RTA_GATEWAY, make([]byte, 16))
		e.Nested(unix.RTA_METRICS, func(m *netlink.AttributeEncoder) error { m.Uint32(unix.RTAX_MTU, 1400); return nil })
	}))
	f.Add(message(f, make([]byte, 4), func(e *netlink.AttributeEncoder) { e.Bytes(attrSPDInfo, make([]byte, 24)) }))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseRoute(b)
		if k := hopOf(&r, &r, false); k.ok && !ok && k.device == 0 {
			t.Errorf("%+v of %x", k, b)
		}
		if len(b) < ruleHeaderLen && plainRule(b) || len(b) < 4 && noPolicies(b) {
			t.Errorf("%x says something", b)
		}
	})
}
