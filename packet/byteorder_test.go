package packet

import "testing"

func TestByteOrder(t *testing.T) {
	if Ntohs(0x0102) != 0x0201 || Htons(0x0102) != 0x0201 {
		t.Error("16 bits")
	}
	if Ntohl(0x01020304) != 0x04030201 || Htonl(0x01020304) != 0x04030201 {
		t.Error("32 bits")
	}
	if Ntohll(0x0102030405060708) != 0x0807060504030201 || Htonll(0x0102030405060708) != 0x0807060504030201 {
		t.Error("64 bits")
	}
	// The address 1:2:3:4:5:6:7:8 as a little-endian machine loads it from a packet.
	loaded := [4]uint32{0x02000100, 0x04000300, 0x06000500, 0x08000700}
	want, _ := ParseIPv6Address("1:2:3:4:5:6:7:8")
	if got := NtohIPv6Address(loaded); got != want {
		t.Errorf("%08x", got)
	}
	same := loaded
	same = NtohIPv6Address(same)
	if HtonIPv6Address(same) != loaded {
		t.Error("there and back")
	}
}
