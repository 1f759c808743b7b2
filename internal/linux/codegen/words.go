//go:build linux

package codegen

import (
	"encoding/binary"
	"net/netip"
)

// PutAddr writes an address as records and keys of maps have it: two words in host byte order, the upper first, IPv4 ones
// mapped. b has 16 bytes at least.
func PutAddr(b []byte, a netip.Addr) {
	ip := a.As16()
	binary.NativeEndian.PutUint64(b[0:], binary.BigEndian.Uint64(ip[0:]))
	binary.NativeEndian.PutUint64(b[8:], binary.BigEndian.Uint64(ip[8:]))
}

// Addr reads the form that PutAddr writes. IPv4 addresses stay mapped.
func Addr(b []byte) netip.Addr {
	var ip [16]byte
	binary.BigEndian.PutUint64(ip[0:], binary.NativeEndian.Uint64(b[0:]))
	binary.BigEndian.PutUint64(ip[8:], binary.NativeEndian.Uint64(b[8:]))
	return netip.AddrFrom16(ip)
}
