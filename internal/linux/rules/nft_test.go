//go:build linux

package rules

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/nfnl"
)

// answer is a datagram of the kernel with one message.
func answer(t testing.TB, kind uint16, body []byte) []byte {
	t.Helper()
	body = append(body, make([]byte, nfnl.Align(len(body))-len(body))...)
	m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Length: uint32(unix.SizeofNlMsghdr + len(body))}, Data: body}
	b, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func attributes(t testing.TB, as ...netlink.Attribute) []byte {
	t.Helper()
	b, err := netlink.MarshalAttributes(as)
	if err != nil {
		t.Fatal(err)
	}
	return append(make([]byte, nfgenmsgLen), b...)
}

func TestAnswers(t *testing.T) {
	o := Owner{ID: 5, Key: cursor.NewKey(0, 1), Queue: 40000, Port: 6}
	rule := answer(t, nfnl.Type(unix.NFNL_SUBSYS_NFTABLES, unix.NFT_MSG_NEWRULE), attributes(t,
		netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: []byte(tableName + "\x00")},
		netlink.Attribute{Type: unix.NFTA_RULE_CHAIN, Data: []byte("inbound\x00")},
		netlink.Attribute{Type: unix.NFTA_RULE_HANDLE, Data: binary.BigEndian.AppendUint64(nil, 9)},
		netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: o.userData()}))
	failed := func(kind uint16, errno unix.Errno) []byte {
		return answer(t, kind, binary.NativeEndian.AppendUint32(nil, -uint32(errno)))
	}
	rows := []struct {
		name     string
		datagram []byte
		rules    int
		done     bool
		err      error
	}{
		{"a rule", rule, 1, false, nil},
		{"the last rule", append(rule, failed(unix.NLMSG_DONE, 0)...), 1, true, nil},
		{"a dump that failed", append(rule, failed(unix.NLMSG_DONE, unix.ENOBUFS)...), 1, true, unix.ENOBUFS},
		{"an end without a word", answer(t, unix.NLMSG_DONE, nil), 0, true, nil},
		{"a refusal", failed(unix.NLMSG_ERROR, unix.ERESTART), 0, true, unix.ERESTART},
		{"an acknowledgement", failed(unix.NLMSG_ERROR, 0), 0, true, nil},
		{"nothing", nil, 0, false, nil},
		{"cut", rule[:len(rule)-4], 0, false, nil},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			n := 0
			answers := nfnl.Messages(row.datagram)
			done, err := take(&answers, func(a nfnl.AttrIter) {
				n++
				if table, chain, r := parseRule(a); table != tableName || chain != "inbound" || r.number != 9 || r.owner == nil || *r.owner != o {
					t.Errorf("%q %q %+v", table, chain, r)
				}
			})
			if n != row.rules || done != row.done || !errors.Is(err, row.err) || err != nil && row.err == nil {
				t.Errorf("%d rules, done %t, %v", n, done, err)
			}
		})
	}
}

// FuzzAnswers reads whatever a datagram holds: nothing outlives the memory that the next one comes to.
func FuzzAnswers(f *testing.F) {
	f.Add(answer(f, nfnl.Type(unix.NFNL_SUBSYS_NFTABLES, unix.NFT_MSG_NEWRULE), attributes(f,
		netlink.Attribute{Type: unix.NFTA_RULE_TABLE, Data: []byte("t\x00")},
		netlink.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: Owner{ID: 5, Key: cursor.NewKey(0, 1)}.userData()})))
	f.Add(answer(f, nfnl.Type(unix.NFNL_SUBSYS_NFTABLES, unix.NFT_MSG_NEWCHAIN), attributes(f,
		netlink.Attribute{Type: unix.NFTA_CHAIN_NAME, Data: []byte("inbound\x00")},
		netlink.Attribute{Type: unix.NFTA_CHAIN_HOOK, Data: []byte{8, 0, 1, 0, 0, 0, 0, 1}})))
	f.Add(answer(f, unix.NLMSG_DONE, []byte{1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var rules []rule
		answers := nfnl.Messages(b)
		_, _ = take(&answers, func(a nfnl.AttrIter) {
			_, _, r := parseRule(a)
			rules = append(rules, r)
			if s := parseChain(a); s.hook != 0 && !s.hooked {
				t.Errorf("%+v", s)
			}
		})
		before := make([]string, len(rules))
		for i := range rules {
			before[i] = string(rules[i].data)
		}
		clear(b)
		for i := range rules {
			if string(rules[i].data) != before[i] {
				t.Error("a rule changes with the buffer")
			}
		}
	})
}

func TestFrame(t *testing.T) {
	var b batch
	b.newTable()
	b.deleteRule("inbound", 7)
	framed := frame(b.messages, 0x01020304)
	if len(framed) != 4 || b.err != nil {
		t.Fatalf("%d messages, %v", len(framed), b.err)
	}
	if begin := framed[0]; begin.Header.Type != unix.NFNL_MSG_BATCH_BEGIN || string(begin.Data) != "\x00\x00\x00\x0a\x08\x00\x01\x00\x01\x02\x03\x04" {
		t.Errorf("begins with %+v", begin)
	}
	if end := framed[3]; end.Header.Type != unix.NFNL_MSG_BATCH_END || string(end.Data) != "\x00\x00\x00\x0a" {
		t.Errorf("ends with %+v", end)
	}
	if !strings.Contains(string(framed[1].Data), tableName+"\x00") {
		t.Errorf("%.100q", framed[1].Data)
	}
}
