//go:build linux

package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// surroundings are the parts of a network's set-up that decide which packets come to handles, and how often.
type surroundings struct {
	bridges    []string            // names of bridges
	vrfs       []string            // names of VRF devices
	filtered   bool                // bridged frames pass the hooks of IP
	flowtables []string            // "FAMILY TABLE NAME"
	redirects  map[string][]string // by what a rule does, its chains: "FAMILY TABLE CHAIN"
	legacy     []string            // tables of iptables-legacy that may redirect
	unknown    error               // why nftables could not be read
}

// look finds the surroundings in the network of the calling thread.
func look() (s surroundings) {
	s.redirects = map[string][]string{}
	if links, err := netlink.LinkList(); err == nil {
		for _, l := range links {
			switch l.Type() {
			case "bridge":
				s.bridges = append(s.bridges, l.Attrs().Name)
			case "vrf":
				s.vrfs = append(s.vrfs, l.Attrs().Name)
			}
		}
	}
	for _, name := range []string{"iptables", "ip6tables"} {
		b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-" + name)
		s.filtered = s.filtered || err == nil && strings.TrimSpace(string(b)) != "0"
	}
	for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
		b, _ := os.ReadFile("/proc/thread-self/net/" + name) // root reads it; there is none without iptables-legacy
		for _, table := range strings.Fields(string(b)) {
			if (table == "nat" || table == "mangle") && !slices.Contains(s.legacy, table) {
				s.legacy = append(s.legacy, table)
			}
		}
	}
	s.unknown = s.readRules()
	return s
}

// readRules reads the rules of others.
func (s *surroundings) readRules() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	list, err := conn.ListChains()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		if flows, err := conn.ListFlowtables(t); err == nil {
			for _, f := range flows {
				s.flowtables = append(s.flowtables, fmt.Sprintf("%s %s %s", familyName(t.Family), t.Name, f.Name))
			}
		}
	}
	for _, c := range list {
		if c.Table.Name == "divert" && c.Table.Family == nftables.TableFamilyINet {
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if what := redirection(r.Exprs); what != "" {
				where := fmt.Sprintf("%s %s %s", familyName(c.Table.Family), c.Table.Name, c.Name)
				if !slices.Contains(s.redirects[what], where) {
					s.redirects[what] = append(s.redirects[what], where)
				}
			}
		}
	}
	return nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return fmt.Sprintf("family %d", f)
}

// redirection says how a rule leads packets to another end, "" if it does not.
func redirection(exprs []expr.Any) string {
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Redir:
			return "REDIRECT"
		case *expr.TProxy:
			return "TPROXY"
		case *expr.NAT:
			if e.Type == expr.NATTypeDestNAT {
				return "DNAT"
			}
		case *expr.Target:
			if e.Name == "REDIRECT" || e.Name == "TPROXY" || e.Name == "DNAT" {
				return e.Name
			}
		}
	}
	return ""
}

// warnings says what handles make of the surroundings.
func (s surroundings) warnings() (ws []Warning) {
	add := func(what, effect, remedy string) { ws = append(ws, Warning{what, effect, remedy}) }
	if len(s.bridges) > 0 && s.filtered {
		add("bridged frames pass the hooks of IP (br_netfilter): "+strings.Join(s.bridges, ", "),
			"handles at layer forward see what a bridge passes on between its ports, as packets that come in by the bridge",
			"sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0, unless something here needs it (container networks may)")
	}
	if len(s.flowtables) > 0 {
		add("flowtables: "+strings.Join(s.flowtables, ", "),
			"no handle sees the packets of a connection that a flowtable has taken over",
			"take the flows that handles are to see out of the rule with `flow add`")
	}
	if len(s.vrfs) > 0 {
		add("VRF devices: "+strings.Join(s.vrfs, ", "),
			"at layer forward the interface of a packet is the VRF device; at layer network a packet is seen once, as one of the port",
			"filter by ifIdx of the device that the layer sees; open handles again if they were there before the first VRF device")
	}
	for _, what := range []string{"REDIRECT", "DNAT", "TPROXY"} {
		if chains := s.redirects[what]; len(chains) > 0 {
			add(what+" in nftables: "+strings.Join(chains, ", "),
				"packets that these rules lead to this host are seen at layer network behind the rules, if the filter matches before and after; packets that they lead to other hosts are seen at layers network and forward",
				"test the source, not the destination, of such packets in filters")
		}
	}
	if len(s.legacy) > 0 {
		add("tables of iptables-legacy: "+strings.Join(s.legacy, ", "),
			"they may redirect packets, with the effects of REDIRECT, DNAT and TPROXY",
			"look with iptables-legacy-save and ip6tables-legacy-save")
	}
	if s.unknown != nil {
		reason := s.unknown.Error()
		if errors.Is(s.unknown, unix.EPERM) {
			reason = "not permitted"
		}
		add("the nftables rules of this network could not be read: "+reason,
			"whether flowtables, REDIRECT or TPROXY keep packets from handles is not known", "run doctor as root")
	}
	return ws
}
