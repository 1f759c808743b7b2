package packet

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"

	"github.com/opendivert/divert/internal/vectors"
)

// TestVectorLayers compares the names of layers in the vectors with those of this package.
func TestVectorLayers(t *testing.T) {
	for l := range NumLayers {
		var named vectors.Layer
		if err := named.UnmarshalText([]byte(l.String())); err != nil || Layer(named) != l {
			t.Errorf("%v is %v, %v", l, Layer(named), err)
		}
	}
}

func TestVectorHash(t *testing.T) {
	type row struct {
		Packet     vectors.Bytes
		Seed, Hash string
	}
	vectors.Run(t, "hash", func(r row) error {
		seed, err := strconv.ParseUint(r.Seed, 16, 64)
		if err != nil {
			return err
		}
		if got := fmt.Sprintf("%016x", Hash(r.Packet, seed)); got != r.Hash {
			return fmt.Errorf("hash %s, want %s", got, r.Hash)
		}
		return nil
	})
}

func TestVectorChecksum(t *testing.T) {
	type row struct {
		Packet    vectors.Bytes
		Addr      vectors.Bytes
		Flags     uint64
		OK        bool
		PacketOut vectors.Bytes `json:"packet_out"`
		AddrOut   vectors.Bytes `json:"addr_out"`
	}
	vectors.Run(t, "checksum", func(r row) error {
		var addr *Address
		if r.Addr != nil {
			addr = new(Address)
			if err := addr.UnmarshalBinary(r.Addr); err != nil {
				return err
			}
		}
		if ok := CalcChecksums(r.Packet, addr, ChecksumFlags(r.Flags)); ok != r.OK {
			return fmt.Errorf("returned %v", ok)
		}
		if !bytes.Equal(r.Packet, r.PacketOut) {
			return fmt.Errorf("packet %x, want %x", r.Packet, r.PacketOut)
		}
		if addr == nil {
			return nil
		}
		out, err := addr.MarshalBinary()
		if err != nil {
			return err
		}
		if !bytes.Equal(out, r.AddrOut) {
			return fmt.Errorf("address %x, want %x", out, r.AddrOut)
		}
		return nil
	})
}

func TestVectorTTL(t *testing.T) {
	type row struct {
		Packet    vectors.Bytes
		OK        bool
		PacketOut vectors.Bytes `json:"packet_out"`
	}
	vectors.Run(t, "ttl", func(r row) error {
		if ok := DecrementTTL(r.Packet); ok != r.OK {
			return fmt.Errorf("returned %v", ok)
		}
		if !bytes.Equal(r.Packet, r.PacketOut) {
			return fmt.Errorf("packet %x, want %x", r.Packet, r.PacketOut)
		}
		return nil
	})
}

func TestVectorParse(t *testing.T) {
	type found struct {
		OK                                 bool
		IPv4, IPv6, ICMP, ICMPv6, TCP, UDP *int32
		Data                               *int32
		Protocol                           uint8
		HeaderLength                       int32 `json:"header_length"`
		PayloadLength                      int32 `json:"payload_length"`
		Fragment, Truncated, Extended      bool
		Next                               *int
		NextLength                         int `json:"next_length"`
	}
	type row struct {
		Packet vectors.Bytes
		found
	}
	offset := func(p *int32) int32 {
		if p == nil {
			return -1
		}
		return *p
	}
	vectors.Run(t, "parse", func(r row) error {
		var p Parsed
		if ok := p.Parse(r.Packet); ok != r.OK {
			return fmt.Errorf("returned %v", ok)
		}
		if !r.OK {
			if p != absent {
				return fmt.Errorf("left %+v", p)
			}
			return nil
		}
		// Values that a row lacks are taken from the result; the named tests check them.
		want := Parsed{
			IPv4Off: offset(r.IPv4), IPv6Off: offset(r.IPv6), ICMPOff: offset(r.ICMP), ICMPv6Off: offset(r.ICMPv6),
			TCPOff: offset(r.TCP), UDPOff: offset(r.UDP), PayloadOff: offset(r.Data), Protocol: r.Protocol,
			HeaderLen: r.HeaderLength, PayloadLen: r.PayloadLength,
			Fragment: r.Fragment, Truncated: r.Truncated, Extended: r.Extended,
			Length: p.Length, Family: p.Family, FragOff: p.FragOff, MF: p.MF,
		}
		if p != want {
			return fmt.Errorf("parsed %+v, want %+v", p, want)
		}
		next := p.Next(r.Packet)
		if len(next) != r.NextLength || (next == nil) != (r.Next == nil) {
			return fmt.Errorf("next has %d bytes, want %d", len(next), r.NextLength)
		}
		if r.Next != nil && !bytes.Equal(next, r.Packet[*r.Next:]) {
			return fmt.Errorf("next is at %d, want %d", len(r.Packet)-len(next), *r.Next)
		}
		return nil
	})
}
