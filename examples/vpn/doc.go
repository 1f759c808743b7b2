// Vpn is a WireGuard peer without a TUN interface: what this host sends to the peers' AllowedIPs is captured by a divert
// handle, and packets from them are injected. The manual: docs/vpn.md.
//
//	vpn wg0.conf
package main
