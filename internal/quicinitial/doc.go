// Package quicinitial reads the Initial packets that begin QUIC connections, versions 1 and 2 (RFC 9000, RFC 9001, RFC
// 9369). Their keys follow from their visible part, so anybody on the path can read the ClientHello in them, and answer.
package quicinitial
