// Package quicinitial reads the Initial packets that begin connections of QUIC, versions 1 and 2 (RFC 9000, RFC 9001, RFC 9369). They
// are protected with keys that follow from what they show, so anybody on the way can read the ClientHello in them, and answer.
package quicinitial
