// Tunnel terminates TCP connections and UDP exchanges that match a filter in its own network stack, and relays them
// through a SOCKS 5 proxy. They may be those of this host or, with -forward, those that it routes for others. The
// manual: docs/tunnel.md.
//
//	tunnel -via socks5://192.0.2.1:1080 'tcp.DstPort == 80 or udp.DstPort == 53'
package main
