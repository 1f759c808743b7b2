// Ids detects intrusions with rules in a subset of Suricata's language, in live traffic or in a capture file, and
// writes alerts in Suricata's format (EVE JSON). With -inline packets pass through it: it drops packets when a rule
// says so, and passes on bytes of a TCP connection only after it has inspected them in order.
//
//	ids rules...                              alerts only
//	ids -inline rules...                      drop and reject, too
//	ids -r capture.pcap rules...              a capture file, no privileges needed
//
// docs/ids.md lists the supported rules.
package main
