// Ids looks for intrusions by rules in a subset of Suricata's language, on live traffic or in a capture file, and writes its
// alerts as Suricata does (EVE JSON). With -inline it stands in the way: packets that a rule drops go nowhere, and of a TCP
// connection nothing goes on that was not inspected in its order.
//
//	ids rules...                              alerts only
//	ids -inline rules...                      drop and reject, too
//	ids -r capture.pcap rules...              a capture file, no privileges needed
//
// docs/ids.md says which rules are understood.
package main
