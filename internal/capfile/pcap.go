package capfile

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// pcapReader reads the frames of a pcap file (draft-ietf-opsawg-pcap), of all the versions and variants that libpcap
// reads (its sf-pcap.c).
type pcapReader struct {
	in       *bufio.Reader
	order    binary.ByteOrder
	unit     time.Duration // of the fraction of a second in a time
	header   int           // bytes before each frame
	lengths  lengthOrder
	linkType linkType
	frames   int // frames read
	buf      []byte
}

// lengthOrder is the order of a frame's two lengths in its header.
type lengthOrder uint8

const (
	capturedFirst lengthOrder = iota // since version 2.4
	originalFirst                    // before 2.3
	smallerFirst                     // the smaller is the captured one: 2.3 was written both ways
)

// The magic numbers of pcap files, in the writer's byte order.
const (
	MagicMicroseconds = 0xa1b2c3d4
	MagicNanoseconds  = 0xa1b23c4d
	MagicPatched      = 0xa1b2cd34 // of Alexey Kuznetzov's modified libpcap: longer headers of frames
)

// The lengths of the file's header, and of a frame's, in bytes. Behind the usual members a patched header has the index
// of the interface (32 bits), the EtherType (16), the packet type of Linux (8), and padding.
const (
	pcapHeader        = 24
	frameHeader       = 16
	frameHeaderLonger = 24
	patchedPacketType = 22
)

// The versions of pcap files. DG/UX wrote 543.0, which is 2.2 otherwise.
const (
	pcapMajor, pcapMinor = 2, 4
	dguxMajor            = 543
)

// maxFrame is the longest frame accepted, as in libpcap, in bytes. The limit in a file's header is ignored: many writers
// exceed it.
const maxFrame = 262144

// pcapOrder returns the byte order of a pcap file that begins with these 4 bytes, nil if it is not a pcap file.
func pcapOrder(magic []byte) binary.ByteOrder {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		switch order.Uint32(magic) {
		case MagicMicroseconds, MagicNanoseconds, MagicPatched:
			return order
		}
	}
	return nil
}

func newPcapReader(in *bufio.Reader, order binary.ByteOrder) (*pcapReader, error) {
	var b [pcapHeader]byte
	if n, err := io.ReadFull(in, b[:]); err != nil {
		return nil, cutOff(err, "the header of the file", n, len(b))
	}
	p := &pcapReader{in: in, order: order, unit: time.Microsecond, header: frameHeader, linkType: linkType(order.Uint32(b[20:]))}
	switch order.Uint32(b[:]) {
	case MagicNanoseconds:
		p.unit = time.Nanosecond
	case MagicPatched:
		p.header = frameHeaderLonger
	}
	switch major, minor := order.Uint16(b[4:]), order.Uint16(b[6:]); {
	case major == dguxMajor && minor == 0, major == pcapMajor && minor < 3:
		p.lengths = originalFirst
	case major == pcapMajor && minor == 3:
		p.lengths = smallerFirst
	case major != pcapMajor || minor > pcapMinor:
		return nil, fmt.Errorf("it is a pcap file of version %d.%d; only 2.0 to 2.4 are known", major, minor)
	}
	return p, nil
}

// next reads a frame.
func (p *pcapReader) next(f *frame) error {
	var header [frameHeaderLonger]byte
	n, err := io.ReadFull(p.in, header[:p.header])
	if err == io.EOF {
		return err
	}
	p.frames++
	if err != nil {
		return cutOff(err, fmt.Sprintf("the header of frame %d", p.frames), n, p.header)
	}
	word := func(at int) uint32 { return p.order.Uint32(header[at:]) }
	captured, length := word(8), word(12)
	if p.lengths == originalFirst || p.lengths == smallerFirst && captured > length {
		captured, length = length, captured
	}
	if captured > maxFrame {
		return fmt.Errorf("frame %d says that it has %d bytes, and no frame has more than %d", p.frames, captured, maxFrame)
	}
	if cap(p.buf) < int(captured) {
		p.buf = make([]byte, max(int(captured), 1<<16))
	}
	f.data = p.buf[:captured]
	if n, err := io.ReadFull(p.in, f.data); err != nil {
		return cutOff(err, fmt.Sprintf("frame %d", p.frames), n, int(captured))
	}
	f.length, f.linkType, f.device, f.direction = int(length), p.linkType, "", Unknown
	f.when = time.Unix(int64(word(0)), int64(word(4))*int64(p.unit))
	if p.header == frameHeaderLonger {
		f.direction = cookedDirection(header[patchedPacketType])
	}
	return nil
}

// cutOff returns the error of a file that ends too early: only n of size bytes are there. It returns other errors of
// reading unchanged.
func cutOff(err error, what string, n, size int) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return fmt.Errorf("it is cut off: of %s, %d bytes, only %d are there (%w)", what, size, n, io.ErrUnexpectedEOF)
}
