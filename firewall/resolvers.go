package firewall

import (
	"bufio"
	"bytes"
	"net/netip"
	"os"
	"strings"
)

// resolverFile names the resolvers of the system.
const resolverFile = "/etc/resolv.conf"

// systemResolvers returns the resolvers that the system names, none where it has no such file.
func systemResolvers() []netip.Addr {
	b, err := os.ReadFile(resolverFile)
	if err != nil {
		return nil
	}
	return parseResolvers(b)
}

// parseResolvers reads the lines "nameserver ADDRESS" (resolv.conf(5)).
func parseResolvers(b []byte) (list []netip.Addr) {
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, a.Unmap().WithZone(""))
		}
	}
	return list
}
