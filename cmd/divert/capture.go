package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// captureReader reads the IP packets of a pcap or pcapng file, compressed with gzip or not.
type captureReader struct {
	in   *bufio.Reader
	pcap *pcapgo.Reader // one of the two
	ng   *pcapgo.NgReader

	layer   divert.Layer
	addr    divert.Address
	parsed  packet.Parsed
	frames  int // read
	skipped int // of them, no IP packets
}

// newCaptureReader begins to read a file. Its packets get addresses of the layer.
func newCaptureReader(in io.Reader, layer divert.Layer) (*captureReader, error) {
	c := &captureReader{layer: layer}
	b := bufio.NewReaderSize(in, 1<<16)
	if magic, _ := b.Peek(2); len(magic) == 2 && magic[0] == 0x1f && magic[1] == 0x8b {
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("the capture file: %w", err)
		}
		b = bufio.NewReaderSize(z, 1<<16)
	}
	c.in = b
	magic, err := b.Peek(4)
	if err != nil {
		return nil, fmt.Errorf("the capture file is empty or damaged: %w", noEOF(err))
	}
	if binary.LittleEndian.Uint32(magic) == blockSection {
		c.ng, err = pcapgo.NewNgReader(b, pcapgo.NgReaderOptions{WantMixedLinkType: true, SkipUnknownVersion: true})
	} else if c.pcap, err = pcapgo.NewReader(b); err == nil {
		c.pcap.SetSnaplen(maxSnapLength) // many writers do not keep to what they announce
	}
	if err != nil {
		return nil, fmt.Errorf("the file is no pcap or pcapng file, or damaged: %w", noEOF(err))
	}
	return c, nil
}

// drained reports whether the next packet must be waited for, as far as one can know.
func (c *captureReader) drained() bool { return c.in.Buffered() == 0 }

// interruptible is a reader whose Read returns when its context ends, even if the reader beneath waits.
type interruptible struct {
	ctx  context.Context
	r    io.Reader
	buf  []byte // what is read; not the caller's memory, which a Read that was given up must not write to
	rest []byte // the part of buf that is still to be returned
	err  error  // what comes behind it
}

// Read reads.
func (i *interruptible) Read(b []byte) (int, error) {
	if len(i.rest) == 0 && i.err == nil {
		i.fill(len(b))
	}
	n := copy(b, i.rest)
	i.rest = i.rest[n:]
	if len(i.rest) > 0 {
		return n, nil
	}
	return n, i.err
}

// fill reads once from the reader beneath. After the end of the context it is not used any more.
func (i *interruptible) fill(n int) {
	if len(i.buf) < n {
		i.buf = make([]byte, n)
	}
	type result struct {
		n   int
		err error
	}
	read := make(chan result, 1)
	go func() {
		n, err := i.r.Read(i.buf)
		read <- result{n, err}
	}()
	select {
	case r := <-read:
		i.rest, i.err = i.buf[:r.n], r.err
	case <-i.ctx.Done():
		i.err = i.ctx.Err()
	}
}

// maxSnapLength is the longest frame that is read, as in libpcap.
const maxSnapLength = 262144

// noEOF turns the end of a file where more was to come into an error of its own.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// next reads the next IP packet to r, which is good until the following call. It returns io.EOF at the end.
func (c *captureReader) next(r *record) error {
	for {
		frame, info, err := c.read(r)
		if err == io.EOF {
			return err
		}
		if err != nil {
			return fmt.Errorf("the capture file, behind frame %d: %w", c.frames, err)
		}
		c.frames++
		linkType := c.linkType(info)
		strip := linkLayers[linkType]
		if strip == nil {
			return fmt.Errorf("the capture file, frame %d: link type %d (%v) is not supported", c.frames, uint16(linkType), linkType)
		}
		data, direction := strip(frame)
		if !c.parsed.Parse(data) {
			c.skipped++
			continue
		}
		if direction != directionUnknown {
			r.direction = direction
		}
		c.fill(r, data, len(frame)-len(data), info)
		return nil
	}
}

// read reads a frame, and of r what only the file knows: device and direction.
func (c *captureReader) read(r *record) (frame []byte, info gopacket.CaptureInfo, err error) {
	r.device, r.direction = "", directionUnknown
	if c.pcap != nil {
		frame, info, err = c.pcap.ZeroCopyReadPacketData()
		return frame, info, err
	}
	var options pcapgo.NgPacketOptions
	frame, info, options, err = c.ng.ZeroCopyReadPacketDataWithOptions()
	if err != nil {
		return nil, info, err
	}
	if i, err := c.ng.Interface(info.InterfaceIndex); err == nil {
		r.device = i.Name
	}
	if options.Flags != nil {
		switch options.Flags.Direction {
		case pcapgo.NgEpbFlagDirectionInbound:
			r.direction = directionIn
		case pcapgo.NgEpbFlagDirectionOutbound:
			r.direction = directionOut
		}
	}
	return frame, info, nil
}

// linkType returns the link type of the frame that was read.
func (c *captureReader) linkType(info gopacket.CaptureInfo) layers.LinkType {
	if c.pcap != nil {
		return c.pcap.LinkType()
	}
	i, err := c.ng.Interface(info.InterfaceIndex)
	if err != nil {
		return layers.LinkTypeMax
	}
	return i.LinkType
}

// fill makes the record of a packet of which header bytes of link layer are taken off.
func (c *captureReader) fill(r *record, data []byte, header int, info gopacket.CaptureInfo) {
	length := max(info.Length-header, len(data))
	// Frames may be padded: what lies behind the packet is none of it.
	if c.parsed.Extended {
		data, length = data[:c.parsed.Length], int(c.parsed.Length)
	}
	c.addr = divert.Address{
		Timestamp: info.Timestamp.UnixNano(), Layer: c.layer, Outbound: r.direction == directionOut, IPv6: c.parsed.Family == 6,
	}
	r.data, r.length, r.when, r.addr, r.live = data, length, info.Timestamp, &c.addr, false
}

// linkLayers take the header of a link type off a frame. They return what follows if that is an IP packet, or
// nothing, and the direction if the header tells it (tcpdump.org/linktypes.html).
var linkLayers = map[layers.LinkType]func([]byte) ([]byte, direction){
	layers.LinkTypeRaw:       bare,
	layers.LinkTypeIPv4:      bare,
	layers.LinkTypeIPv6:      bare,
	12:                       bare, // what RAW is in files of OpenBSD's and others' DLT numbers
	14:                       bare,
	layers.LinkTypeNull:      func(b []byte) ([]byte, direction) { return b[min(4, len(b)):], directionUnknown },
	layers.LinkTypeLoop:      func(b []byte) ([]byte, direction) { return b[min(4, len(b)):], directionUnknown },
	layers.LinkTypeEthernet:  ethernet,
	layers.LinkTypeLinuxSLL:  func(b []byte) ([]byte, direction) { return cooked(b, 16, 14, 1) },
	layers.LinkTypeLinuxSLL2: func(b []byte) ([]byte, direction) { return cooked(b, 20, 0, 10) },
}

func bare(b []byte) ([]byte, direction) { return b, directionUnknown }

// The EtherTypes (IANA IEEE 802 numbers).
const (
	etherIPv4    = 0x0800
	etherIPv6    = 0x86DD
	etherVLAN    = 0x8100
	etherService = 0x88A8 // outer VLAN tag
)

// ethernet takes an Ethernet header off, with VLAN tags.
func ethernet(b []byte) ([]byte, direction) {
	for at := 12; at+2 <= len(b); at += 4 {
		switch be16(b[at:]) {
		case etherIPv4, etherIPv6:
			return b[at+2:], directionUnknown
		case etherVLAN, etherService:
		default:
			return nil, directionUnknown
		}
	}
	return nil, directionUnknown
}

// outgoingPacket is the packet type of what the host sends, in the headers of LINUX_SLL and LINUX_SLL2.
const outgoingPacket = 4

// cooked takes a header of Linux's cooked captures off: its size, and where the EtherType and the
// low byte of the packet type stand.
func cooked(b []byte, size, etherType, packetType int) ([]byte, direction) {
	if len(b) < size {
		return nil, directionUnknown
	}
	way := directionIn
	if b[packetType] == outgoingPacket {
		way = directionOut
	}
	if t := be16(b[etherType:]); t != etherIPv4 && t != etherIPv6 {
		return nil, way
	}
	return b[size:], way
}
