//go:build linux

package lab

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// nftFamilies names the families of nftables as nft(8) does.
var nftFamilies = map[uint8]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
	unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev",
}

// nftTableName is NFTA_TABLE_NAME (include/uapi/linux/netfilter/nf_tables.h).
const nftTableName = 1

// NFTables lists the host's nftables tables as "inet divert". A kernel without nftables has none.
func (h *Host) NFTables() (tables []string, err error) {
	var messages [][]byte
	err = h.Do(func() (err error) {
		request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETTABLE, unix.NLM_F_DUMP)
		request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_UNSPEC})
		messages, err = request.Execute(unix.NETLINK_NETFILTER, 0)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil, nil // no netfilter netlink, or no nftables
	}
	if err != nil {
		return nil, fmt.Errorf("lab: host %s: list nftables tables: %w", h, err)
	}
	for _, m := range messages {
		if len(m) < nl.SizeofNfgenmsg {
			return nil, fmt.Errorf("lab: host %s: short nftables message", h)
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, fmt.Errorf("lab: host %s: nftables message: %w", h, err)
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK == nftTableName {
				tables = append(tables, nftFamilies[m[0]]+" "+unix.ByteSliceToString(a.Value))
			}
		}
	}
	return tables, nil
}
