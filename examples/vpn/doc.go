// Vpn is a WireGuard peer without a TUN interface: a divert handle captures the packets that this host sends to the
// peers' AllowedIPs, and injects packets from them. The manual: docs/vpn.md.
//
//	vpn wg0.conf
package main
