// Package filter is the filter language of WinDivert: it compiles the text of a filter to a Program, decides with it
// about packets and events, and turns it into text and object strings again. A filter is a Boolean expression of tests
// such as tcp.DstPort == 80; Fields lists the fields for tests. The package depends only on package packet and touches no
// network, so it works on any system.
//
// # Grammar
//
// The strict dialect, which is WinDivert 2.2 to the letter:
//
//	filter  = disj
//	disj    = conj { "or" conj }
//	conj    = primary { "and" primary }
//	primary = "(" disj ")" | "(" disj "?" disj ":" disj ")" | { "not" } test
//	test    = field [ op [ "-" ] number ]
//	field   = name | name "[" [ "-" ] number [ "b" ] "]"
//	op      = "==" | "=" | "!=" | "<" | "<=" | ">" | ">="
//	number  = decimal | "0x" hexadecimal | IPv4 address | IPv6 address | macro
//
// The words and, or, not may be written &&, ||, !. Everything is case-sensitive. A test without operator is field != 0.
// An index counts elements, or bytes with a b behind the number; with a minus sign it counts from the end. A test fails,
// whatever its operator, if the packet has no such field, so tcp.DstPort != 80 and not tcp.DstPort == 80 both mean TCP
// packets to other ports.
//
// The extended dialect, the default, adds to that:
//
//	primary = … | { "not" } "(" disj ")" | { "not" } "(" disj "?" disj ":" disj ")"
//	test    = … | field ( "==" | "=" | "!=" ) prefix | field [ "not" ] "in" set
//	set     = "{" element { "," element } [ "," ] "}" | "@" name
//	element = number | number "-" number | prefix
//	prefix  = address "/" decimal
//
// A negated parenthesis matches exactly when its content does not: not (tcp.DstPort == 80) matches UDP packets too. A
// program fills and changes the elements of a named set: see Set. Elements of sets are not negative. A set or prefix is
// one test, however large.
//
// # Differences between the dialects
//
// A filter that compiles in both dialects means the same in both, with three exceptions, in which the extended dialect
// takes the name at its word. ipv6.FlowLabel is the flow label, where the original has its bytes in disorder. ip and ipv6
// at the layers FLOW and SOCKET tell the family of the event, where the original finds no packet and says no. And -0 is
// 0, where the original puts it below. A bare test, and a comparison that always holds, folds as in the original: not
// ip.SrcAddr is not ip, and packet[1000] <= 255 is true even if the packet is shorter.
//
// The extended dialect refuses, with an error that gives the reason, filters that the original accepts but that cannot be
// intended: literals outside the range of their field (tcp.DstPort == 70000, which the original turns into "not tcp"),
// comparisons that never hold (tcp.DstPort < 0), addresses of the other family, and accidents of the original's lexer (a
// stray b, digits behind an address of eight groups, address parts beyond 32 bits, 0x without digits). Words may be of
// any length, and a colon that touches the word behind it, as in (tcp? udp:icmp), is found. Limits: see Compile.
package filter
