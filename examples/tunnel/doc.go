// Tunnel ends connections of TCP and exchanges of UDP that match a filter in a network stack of its own, and
// leads them on through a SOCKS 5 proxy. They may be those of this host or, with -forward, those that it routes for
// others. The manual: docs/tunnel.md.
//
//	tunnel -via socks5://192.0.2.1:1080 'tcp.DstPort == 80 or udp.DstPort == 53'
package main
