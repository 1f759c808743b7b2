// Package tcpdump converts filters of tcpdump(1), whose language is that of pcap-filter(7), to filters of Divert,
// and back.
//
// Both languages test packets, but different ones: tcpdump sees frames of a network, Divert sees IP packets of a host. A
// filter is converted only if the result matches the same IP packets. Where a difference remains that no field of Divert
// can express, a note says so; where a part has no counterpart, the error names that part.
//
//	text → tokens (lex.go) → syntax tree (parse.go) → conditions of Divert (convert.go, bytes.go) → text (print.go)
//
// The reverse conversion starts from the program of a filter (neighbour.go, prefixes.go).
package tcpdump
