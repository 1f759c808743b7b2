package firewall_test

import (
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/opendivert/divert/firewall"
)

// The decision by itself, without a network.
func ExampleRules_Decide() {
	rules, err := firewall.Parse([]byte(`
default: deny
rules:
  - {name: web, action: allow, direction: out, protocol: tcp, port: [80, 443]}
  - {name: no mail, action: reject, port: 25}
`), ".")
	if err != nil {
		log.Fatal(err)
	}
	for _, to := range []string{"192.0.2.7:443", "192.0.2.7:25", "192.0.2.7:22"} {
		d := rules.Decide(&firewall.Conn{
			Outbound: true, Protocol: 6, Hello: true, Time: time.Now(),
			Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort(to),
		})
		fmt.Println(to, d.Action, "by", rules.Name(d.Rule))
	}
	// Output:
	// 192.0.2.7:443 allow by web
	// 192.0.2.7:25 reject by no mail
	// 192.0.2.7:22 deny by default
}
