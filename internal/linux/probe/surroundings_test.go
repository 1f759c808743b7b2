//go:build linux

package probe

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

func TestWarnings(t *testing.T) {
	rows := []struct {
		name string
		s    surroundings
		want []string // the beginnings of the warnings, in order
	}{
		{"nothing", surroundings{}, nil},
		{"a bridge whose frames are not filtered", surroundings{bridges: []string{"br0"}}, nil},
		{"filtered, but no bridge", surroundings{filtered: true}, nil},
		{"a filtered bridge", surroundings{bridges: []string{"br0"}, filtered: true}, []string{"bridged frames pass the hooks of IP (br_netfilter): br0"}},
		{"flowtables", surroundings{flowtables: []string{"inet fw ft"}}, []string{"flowtables: inet fw ft"}},
		{"VRF", surroundings{vrfs: []string{"red", "blue"}}, []string{"VRF devices: red, blue"}},
		{"redirections", surroundings{redirects: map[string][]string{"TPROXY": {"inet p x"}, "REDIRECT": {"ip nat PREROUTING"}}},
			[]string{"REDIRECT in nftables: ip nat PREROUTING", "TPROXY in nftables: inet p x"}},
		{"iptables-legacy", surroundings{legacy: []string{"nat"}}, []string{"tables of iptables-legacy: nat"}},
		{"rules that may not be read", surroundings{unknown: unix.EPERM}, []string{"the nftables rules of this network could not be read: not permitted"}},
		{"rules that cannot be read", surroundings{unknown: errors.New("no memory")}, []string{"the nftables rules of this network could not be read: no memory"}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got := row.s.warnings()
			if len(got) != len(row.want) {
				t.Fatalf("%+v, want %q", got, row.want)
			}
			for i, w := range got {
				if w.What != row.want[i] || w.Effect == "" || w.Remedy == "" {
					t.Errorf("%+v, want %q with effect and remedy", w, row.want[i])
				}
			}
		})
	}
}

func TestRedirection(t *testing.T) {
	rows := []struct {
		name string
		e    expr.Any
		want string
	}{
		{"redirect", &expr.Redir{}, "REDIRECT"},
		{"tproxy", &expr.TProxy{}, "TPROXY"},
		{"dnat", &expr.NAT{Type: expr.NATTypeDestNAT}, "DNAT"},
		{"snat", &expr.NAT{Type: expr.NATTypeSourceNAT}, ""},
		{"iptables-nft, TPROXY", &expr.Target{Name: "TPROXY"}, "TPROXY"},
		{"iptables-nft, MARK", &expr.Target{Name: "MARK"}, ""},
		{"counter", &expr.Counter{}, ""},
	}
	for _, row := range rows {
		if got := redirection([]expr.Any{&expr.Counter{}, row.e}); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}

// TestWarningsOfANetwork finds what somebody else has made in a network.
func TestWarningsOfANetwork(t *testing.T) {
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	found := func() (all string) {
		if err := h.Do(func() error {
			for _, w := range look().warnings() {
				all += w.What + "\n"
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return all
	}
	if got := found(); got != "" {
		t.Errorf("in an empty network: %s", got)
	}
	nl, err := h.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	want := []string{"REDIRECT in nftables: ip others to_proxy\n"}
	if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}); err != nil {
		t.Fatal(err)
	}
	if v, err := h.SysctlValue("net.bridge.bridge-nf-call-iptables"); err == nil && v != "0" {
		want = append(want, "bridged frames pass the hooks of IP (br_netfilter): br0\n")
	}
	if err := nl.LinkAdd(&netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: "red"}, Table: 10}); err == nil {
		want = append(want, "VRF devices: red\n")
	}
	rules := func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{Name: "to_proxy", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		for range 2 {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Register: 1, Data: []byte{unix.IPPROTO_TCP}},
				&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(8080)},
				&expr.Redir{RegisterProtoMin: 1},
			}})
		}
	}
	if err := h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		rules(c)
		return c.Flush()
	}); err != nil {
		t.Fatal(err)
	}
	got := found()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%q is not among\n%s", w, got)
		}
	}
	if n := strings.Count(got, "\n"); n != len(want) {
		t.Errorf("%d warnings, want %d:\n%s", n, len(want), got)
	}
}
