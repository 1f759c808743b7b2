//go:build linux

package rules

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/prog"
)

// Names of numbers in the printed form.
var (
	metaNames = map[expr.MetaKey]string{
		expr.MetaKeyPRIORITY: "priority", expr.MetaKeyIIF: "iif", expr.MetaKeyNFPROTO: "nfproto", expr.MetaKeyL4PROTO: "l4proto",
	}
	opNames = map[expr.CmpOp]string{expr.CmpOpEq: "==", expr.CmpOpNeq: "!="}
)

// host prints bytes of the machine's order as a number.
func host(b []byte) string { return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b)) }

// print returns an expression in words; r is a register.
func print(e expr.Any) string {
	switch e := e.(type) {
	case *expr.Meta:
		if e.SourceRegister {
			return fmt.Sprintf("meta %s = r%d", metaNames[e.Key], e.Register)
		}
		return fmt.Sprintf("r%d = meta %s", e.Register, metaNames[e.Key])
	case *expr.Bitwise:
		return fmt.Sprintf("r%d = r%d & %s ^ %s", e.DestRegister, e.SourceRegister, host(e.Mask), host(e.Xor))
	case *expr.Cmp:
		return fmt.Sprintf("r%d %s %x", e.Register, opNames[e.Op], e.Data)
	case *expr.Byteorder:
		if e.Op == expr.ByteorderHton && e.Len == 4 && e.Size == 4 {
			return fmt.Sprintf("r%d = htonl r%d", e.DestRegister, e.SourceRegister)
		}
	case *expr.Range:
		return fmt.Sprintf("r%d %s %x-%x", e.Register, opNames[e.Op], e.FromData, e.ToData)
	case *expr.Fib:
		if e.FlagSADDR && e.ResultADDRTYPE && !e.FlagDADDR && !e.FlagIIF && !e.FlagOIF && !e.FlagMARK {
			return fmt.Sprintf("r%d = fib saddr type", e.Register)
		}
		if e.FlagDADDR && e.ResultADDRTYPE && !e.FlagSADDR && !e.FlagIIF && !e.FlagOIF && !e.FlagMARK {
			return fmt.Sprintf("r%d = fib daddr type", e.Register)
		}
	case *expr.Hash:
		if e.Type == expr.HashTypeSym {
			return fmt.Sprintf("r%d = symhash mod %d", e.DestRegister, e.Modulus)
		}
	case *expr.Objref:
		if e.Type == int(nftables.ObjTypeCounter) {
			return "counter " + e.Name
		}
	case *expr.Match:
		info := *e.Info.(*xt.Unknown)
		return fmt.Sprintf("match %s.%d, %d bytes: %x", e.Name, e.Rev, len(info), strings.TrimRight(string(info), "\x00"))
	case *expr.Target:
		return fmt.Sprintf("target %s.%d: %x", e.Name, e.Rev, *e.Info.(*xt.Unknown))
	case *expr.Log:
		if e.Key == 1<<unix.NFTA_LOG_GROUP|1<<unix.NFTA_LOG_QTHRESHOLD {
			return fmt.Sprintf("log group %d, threshold %d", e.Group, e.QThreshold)
		}
	case *expr.Verdict:
		switch e.Kind {
		case expr.VerdictAccept:
			return "accept"
		case expr.VerdictReturn:
			return "return"
		case expr.VerdictJump:
			return "jump " + e.Chain
		case expr.VerdictDrop:
			return "drop"
		}
	case *expr.Immediate:
		return fmt.Sprintf("r%d = %x", e.Register, e.Data)
	case *expr.TProxy:
		return fmt.Sprintf("tproxy family %d to port r%d, table family %d", e.Family, e.RegPort, e.TableFamily)
	case *expr.Payload:
		if e.Base == expr.PayloadBaseLLHeader {
			return fmt.Sprintf("r%d = ether %d+%d", e.DestRegister, e.Offset, e.Len)
		}
		if e.Base == expr.PayloadBaseNetworkHeader {
			return fmt.Sprintf("r%d = ip %d+%d", e.DestRegister, e.Offset, e.Len)
		}
	}
	return fmt.Sprintf("%T %+v", e, e)
}

func TestExpressions(t *testing.T) {
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the expected bytes are those of a little-endian machine")
	}
	o := Owner{ID: 0xabcd, Key: cursor.NewKey(0, 1)}
	const (
		toQueue  = "target NFQUEUE.3: 0080010001000000"
		matchBPF = "match bpf.1, 528 bytes: 0200000007"
		count    = "counter handle_abcd"
	)
	local := []string{
		"r2 = meta priority", "r1 = r2 & 0x0000000f ^ 0xf0000000", "meta priority = r1",
		"r1 = fib daddr type", "r1 = htonl r1", "r1 == 00000002-00000005", "meta priority = r2",
	}
	// The key of priority 0, sub 1: 30000<<8 | 1 = 0x753001.
	notServed := []string{"r1 = meta priority", "r1 = htonl r1", "r1 != d0000000-d753001f"}
	notLoopback := []string{"r1 = meta iif", "r1 != 01000000"}
	queue, log, nowhere := ToQueue{Num: 0x8000}, ToLog{Group: 0x8001}, ToNowhere{Num: 0x8000}
	const toLog = "log group 32769, threshold 32"
	join := func(parts ...any) (lines []string) {
		for _, p := range parts {
			switch p := p.(type) {
			case string:
				lines = append(lines, p)
			case []string:
				lines = append(lines, p...)
			}
		}
		return lines
	}
	rows := []struct {
		name string
		got  []expr.Any
		want []string
	}{
		{"outbound, a program", Rule{Chain: Outbound, Program: 7, Action: queue}.exprs(o), join(matchBPF, count, toQueue)},
		{"forward, a program, to the log", Rule{Chain: Forward, Program: 7, Action: log}.exprs(o), join(matchBPF, count, toLog)},
		{"inbound, a program", Rule{Chain: Inbound, Program: 7, Action: queue}.exprs(o), join(matchBPF, local, count, toQueue)},
		{"inbound fragments, a program", Rule{Chain: InboundFragments, Program: 7, Action: queue}.exprs(o), join(matchBPF, local, count, toQueue)},
		{"outbound, no program", Rule{Chain: Outbound, Program: NoProgram, Action: queue}.exprs(o), join(notServed, count, toQueue)},
		{"forward, no program", Rule{Chain: Forward, Program: NoProgram, Action: queue}.exprs(o), join(notServed, count, toQueue)},
		{"outbound, a share of the flows", Rule{Chain: Outbound, Program: 7, Action: queue, Share: Share{2, 4}}.exprs(o), join("r1 = symhash mod 4", "r1 == 02000000", matchBPF, count, toQueue)},
		{"inbound, no program", Rule{Chain: Inbound, Program: NoProgram, Action: log}.exprs(o), join(notServed, notLoopback, local, count, toLog)},
		{"outbound, dropped", Rule{Chain: Outbound, Program: 7, Action: nowhere}.exprs(o), join(matchBPF, count, toQueue)},
		{"inbound, dropped", Rule{Chain: Inbound, Program: 7, Action: nowhere}.exprs(o), join(matchBPF, local, count, "drop")},
		{"forward, dropped", Rule{Chain: Forward, Program: 7, Action: nowhere}.exprs(o), join(matchBPF, count, "drop")},
		{"outbound, TCP", Rule{Chain: Outbound, Program: 7, Action: queue, When: When{Only: TCP}}.exprs(o), join("r1 = meta l4proto", "r1 == 06", matchBPF, count, toQueue)},
		{"outbound, plain TCP", Rule{Chain: Outbound, Program: NoProgram, Action: queue, When: When{Only: PlainTCP4}}.exprs(o),
			join("r1 = meta nfproto", "r1 == 02", "r1 = ip 0+1", "r1 == 45", "r1 = ip 9+1", "r1 == 06", notServed, count, toQueue)},
		{"outbound, plain TCP of IPv6", Rule{Chain: Outbound, Program: NoProgram, Action: queue, When: When{Only: PlainTCP6}}.exprs(o),
			join("r1 = meta nfproto", "r1 == 0a", "r1 = ip 6+1", "r1 == 06", notServed, count, toQueue)},
		{"inbound, TCP of IPv6", Rule{Chain: Inbound, Program: NoProgram, Action: queue, When: When{Only: TCP6}}.exprs(o),
			join("r1 = meta nfproto", "r1 == 0a", "r1 = meta l4proto", "r1 == 06", notServed, notLoopback, local, count, toQueue)},
		{"outbound, BIG TCP", Rule{Chain: Outbound, Program: NoProgram, Action: queue, When: When{Only: BigTCP6}}.exprs(o),
			join("r1 = meta nfproto", "r1 == 0a", "r1 = ip 6+1", "r1 == 00", "r1 = ip 40+4", "r1 == 0600c204", notServed, count, toQueue)},
		{"not counted", Rule{Chain: Outbound, Program: 7, Action: queue, Silent: true}.exprs(o), join(matchBPF, toQueue)},
		{"datagrams cut", Rule{Chain: OutboundCut, Action: ToCutter{Num: 0x8000}, When: CasesOfDatagrams([]prog.Term{{}})[1]}.exprs(o),
			[]string{"r1 = meta nfproto", "r1 == 0a", "r1 = ip 6+1", "r1 == 11", toQueue}},
		{"datagrams led to be cut", cutting.exprs(), []string{
			"r1 = meta priority", "r2 = r1 & 0xc0000000 ^ 0x00000000", "r2 != 000000c0", "r1 = meta l4proto", "r1 == 11", "jump outbound_cut",
		}},
		{"closing", closing.exprs(), []string{
			"r1 = meta priority", "r2 = r1 & 0xf0000000 ^ 0x00000000", "r2 == 000000d0",
			"r1 = r1 & 0x0000000f ^ 0x00000000", "meta priority = r1",
		}},
		{"without a cursor", passing.exprs(), []string{
			"r1 = meta priority", "r2 = r1 & 0xc0000000 ^ 0x00000000", "r2 != 000000c0", "accept",
		}},
		{"a forged cursor", clearing.exprs(), []string{
			"r1 = meta priority", "r2 = r1 & 0xc0000000 ^ 0x00000000", "r2 == 000000c0",
			"r1 = r1 & 0x0000000f ^ 0x00000000", "meta priority = r1",
		}},
		{"for this host before", known.exprs(), []string{
			"r1 = meta priority", "r2 = r1 & 0xd0000000 ^ 0x00000000", "r2 != 000000d0", "accept",
		}},
		{"redirected", opening.exprs(), []string{
			"r1 = meta priority", "r2 = r1 & 0xf0000000 ^ 0x00000000", "r2 == 000000f0",
			"r1 = r1 & 0x0000000f ^ 0xdffffff0", "meta priority = r1",
		}},
		{"closing of forwarded packets", forgetting.exprs(), []string{
			"r1 = meta priority", "r2 = r1 & 0xd0000000 ^ 0x00000000", "r2 == 000000d0",
			"r1 = r1 & 0x0000000f ^ 0x00000000", "meta priority = r1",
		}},
		{"forwarded without a cursor", entering.exprs(), []string{
			"r1 = meta priority", "r2 = r1 & 0xf0000000 ^ 0x00000000", "r2 != 000000d0", "jump forward_origin",
		}},
		{"forwarded packets marked", markForwarded(), []string{
			"r1 = meta priority", "r2 = r1 & 0xfffffff0 ^ 0x00000000", "r2 == 00000000",
			"r1 = r1 & 0x0000000f ^ 0xc0000000", "meta priority = r1",
		}},
		{"forwarded packets passed over", passForwarded(), []string{
			"r1 = meta priority", "r2 = r1 & 0xf0000000 ^ 0x00000000", "r2 == 000000c0",
			"r1 = r1 & 0x0000000f ^ 0x00000000", "meta priority = r1", "return",
		}},
		{"forwarded packets without room for the mark", passUnmarked(), []string{
			"r1 = meta priority", "r2 = r1 & 0xfffffff0 ^ 0x00000000", "r2 != 00000000",
			"r1 = meta priority", "r2 = r1 & 0xc0000000 ^ 0x00000000", "r2 != 000000c0",
			"r1 = meta iif", "r1 != 00000000", "r1 = fib saddr type", "r1 != 02000000", "return",
		}},
		{"reassembly, IPv4", defragRules()[0], []string{
			"r1 = meta nfproto", "r1 == 02", "r1 = 0001", "tproxy family 2 to port r1, table family 1",
		}},
		{"reassembly, IPv6", defragRules()[1], []string{
			"r1 = meta nfproto", "r1 == 0a", "r1 = 0001", "tproxy family 10 to port r1, table family 1",
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var got []string
			for _, e := range row.got {
				got = append(got, print(e))
			}
			if g, w := strings.Join(got, "\n"), strings.Join(row.want, "\n"); g != w {
				t.Errorf("got\n%s\nwant\n%s", g, w)
			}
		})
	}
}

func TestChainsStandAtTheirPlaces(t *testing.T) {
	h, ns := newHost(t)
	e := open(t, ns, 1, 0)
	rows := map[string]struct {
		hook     *nftables.ChainHook
		priority nftables.ChainPriority
	}{
		"inbound":           {nftables.ChainHookPrerouting, -300},
		"inbound_fragments": {nftables.ChainHookPrerouting, -450},
		"forward":           {nftables.ChainHookForward, -300},
		"outbound":          {nftables.ChainHookPostrouting, 2147483547},
		"redirected":        {nftables.ChainHookInput, -300},
		"inbound_origin":    {nftables.ChainHookPrerouting, -451},
		"forward_origin":    {},
		"outbound_origin":   {nftables.ChainHookOutput, -451},
		"defrag":            {},
		"handles":           {},
		"filter_1":          {},
	}
	nft(t, h, func(c *nftables.Conn) error {
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return err
		}
		for _, got := range chains {
			want, ok := rows[got.Name]
			delete(rows, got.Name)
			switch {
			case !ok || got.Table.Name != tableName:
				t.Errorf("chain %s of table %s", got.Name, got.Table.Name)
			case want.hook == nil:
				if got.Hooknum != nil {
					t.Errorf("%s has a hook", got.Name)
				}
			case *got.Hooknum != *want.hook || *got.Priority != want.priority || got.Type != nftables.ChainTypeFilter || *got.Policy != nftables.ChainPolicyAccept:
				t.Errorf("%s: hook %d, priority %d, type %s, policy %d", got.Name, *got.Hooknum, *got.Priority, got.Type, *got.Policy)
			}
		}
		return nil
	})
	if len(rows) > 0 {
		t.Errorf("missing: %v", rows)
	}
	closeAll(t, e)
	noTable(t, h)
}
