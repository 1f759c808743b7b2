//go:build linux

package rules

import (
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/nfnl"
)

// TestFiltersInUserData puts filters of all lengths together again, from parts in any order.
func TestFiltersInUserData(t *testing.T) {
	o := Owner{ID: 1<<64 - 1, PID: 1<<22 - 1, Opened: 1<<63 - 1, Key: cursor.NewKey(-30000, 255), Priority: -30000, Layer: 4, Flags: 63}
	for _, n := range []int{0, 1, 100, 128, 129, 1000, 12287} {
		o.Filter = strings.Repeat("0123456789abcdef@", n/17+1)[:n]
		parts := o.filterParts()
		var f filterText
		for i := range parts {
			data := parts[len(parts)-1-i]
			if len(data) > maxUserData {
				t.Errorf("%d bytes of userdata", len(data))
			}
			p, ok := parseFilterPart(data)
			if !ok || p.handle != o.ID || p.count != len(parts) {
				t.Fatalf("part %+v, %v", p, ok)
			}
			f.add(p)
		}
		if f.String() != o.Filter {
			t.Errorf("%d bytes became %d", n, len(f.String()))
		}
	}
	if _, ok := parseFilterPart(o.userData()); ok {
		t.Error("an owner is a part of a filter")
	}
}

func FuzzFilterPart(f *testing.F) {
	o := Owner{Filter: "zero"}
	f.Add(o.filterParts()[0])
	f.Add(o.userData())
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, ok := parseFilterPart(data); ok {
			var filter filterText
			filter.add(p)
			if filter.String() != p.text {
				t.Errorf("%q became %q", p.text, filter.String())
			}
		}
	})
}

// FuzzObservedMessages gives an observer messages of all kinds: it must never claim a change of a handle that
// it did not see come.
func FuzzObservedMessages(f *testing.F) {
	o := Owner{ID: 5, PID: 6, Key: cursor.NewKey(0, 1)}
	rule := func(userData []byte) []byte {
		b, err := netlink.MarshalAttributes([]netlink.Attribute{
			{Type: unix.NFTA_RULE_TABLE, Data: []byte(tableName + "\x00")},
			{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chains[Handles].name + "\x00")},
			{Type: unix.NFTA_RULE_HANDLE, Data: []byte{0, 0, 0, 0, 0, 0, 0, 9}},
			{Type: unix.NFTA_RULE_USERDATA, Data: userData},
		})
		if err != nil {
			f.Fatal(err)
		}
		return append([]byte{unix.NFPROTO_INET, 0, 0, 0}, b...)
	}
	f.Add(rule(o.userData()), rule(nil))
	f.Add([]byte{1}, []byte{})
	f.Fuzz(func(t *testing.T, added, removed []byte) {
		obs := &Observer{
			known: map[uint64]Owner{}, numbers: map[uint64]uint64{}, filters: map[uint64]filterText{},
			fresh: map[uint64]Owner{}, gone: map[uint64]bool{},
		}
		const nftables = unix.NFNL_SUBSYS_NFTABLES << 8
		end := netlink.Message{
			Header: netlink.Header{Type: nftables | unix.NFT_MSG_NEWGEN},
			Data:   append(make([]byte, nfgenmsgLen), nfnl.AppendAttr32(nil, unix.NFTA_GEN_ID, 1)...),
		}
		open := 0
		for _, m := range []netlink.Message{
			{Header: netlink.Header{Type: nftables | unix.NFT_MSG_NEWRULE}, Data: added}, end,
			{Header: netlink.Header{Type: nftables | unix.NFT_MSG_DELRULE}, Data: removed}, end,
		} {
			for _, c := range obs.message(m) {
				if open++; c.Closed {
					open -= 2
				}
				if open < 0 || open > 1 {
					t.Errorf("change %+v of a handle that is not there", c)
				}
			}
		}
	})
}
