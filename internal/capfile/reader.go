package capfile

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opendivert/divert/packet"
)

// Reader reads the IP packets of a pcap or pcapng file, compressed with gzip or not. It is for one goroutine at a time.
type Reader struct {
	in     *bufio.Reader
	frames frameReader
	frame  frame
	notes  notes

	layer  packet.Layer
	parsed packet.Parsed

	read    int // frames
	skipped int // frames without an IP packet
	unknown int // frames of link types that are not understood
}

// Packet is an IP packet of a capture file. Data belongs to the reader, and is valid until the next packet is read.
type Packet struct {
	Data      []byte    // from the IP header on, as far as it was captured
	Length    int       // in bytes, of the packet; more than len(Data) if the capture cut it
	Time      time.Time // of the capture
	Device    string    // the interface, "" if unknown
	Direction Direction
	Addr      packet.Address // the parts that the file has: timestamp in nanoseconds since 1970, layer, direction, family

	PID           uint32 // the process, 0 if unknown
	Program, Path string // of the process, "" if unknown

	Verdict Verdict
	Lost    uint64 // packets lost before this one, as recorded in the file
}

// Direction is a packet's direction, if the file has it.
type Direction uint8

// The directions.
const (
	Unknown Direction = iota
	In
	Out
)

// frame is a frame of a capture file. Data is valid until the next one is read.
type frame struct {
	data      []byte
	length    int // on the wire, according to the file
	when      time.Time
	linkType  linkType
	device    string    // "" if unknown
	direction Direction // if the file has it

	pid           uint32 // the process of the packet, 0 if unknown
	program, path string
	verdict       Verdict
	lost          uint64 // packets lost before it
}

// frameReader reads a file of one of the formats. At the end of the file next returns io.EOF, or, if the file ends too
// early, an error that wraps io.ErrUnexpectedEOF.
type frameReader interface{ next(f *frame) error }

// notes are remarks for the end of a file, each once.
type notes []string

func (n *notes) add(text string) {
	if !slices.Contains(*n, text) {
		*n = append(*n, text)
	}
}

// NewReader begins to read a file. Its packets get addresses of the layer.
func NewReader(in io.Reader, layer packet.Layer) (*Reader, error) {
	c := &Reader{layer: layer}
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
	switch {
	case err == io.EOF && len(magic) == 0:
		return nil, errors.New("the capture file is empty")
	case err != nil:
		return nil, fmt.Errorf("the capture file: %w", cutOff(err, "the header of the file", len(magic), pcapHeader))
	}
	order := pcapOrder(magic)
	switch {
	case binary.LittleEndian.Uint32(magic) == BlockSection:
		c.frames = newPcapngReader(b, &c.notes)
	case order != nil:
		p, err := newPcapReader(b, order)
		if err != nil {
			return nil, fmt.Errorf("the capture file: %w", err)
		}
		if linkLayers[p.linkType.number()] == nil {
			return nil, fmt.Errorf("the capture file: link type %v is not understood", p.linkType)
		}
		c.frames = p
	default:
		return nil, fmt.Errorf("the file is not a pcap or pcapng file: it begins with % x", magic)
	}
	return c, nil
}

// Drained reports whether reading the next packet would probably wait.
func (c *Reader) Drained() bool { return c.in.Buffered() == 0 }

// Next reads the next IP packet to p. It returns io.EOF at the end of the file.
func (c *Reader) Next(p *Packet) error {
	f := &c.frame
	for {
		switch err := c.frames.next(f); {
		case err == io.EOF && c.unknown > 0 && c.unknown == c.read:
			return errors.New("nothing in the capture file could be read: " + strings.Join(c.notes, "; "))
		case err == io.EOF:
			return err
		case err != nil:
			return fmt.Errorf("the capture file, behind frame %d: %w", c.read, err)
		}
		c.read++
		strip := linkLayers[f.linkType.number()]
		if strip == nil {
			c.unknown++
			c.notes.add(fmt.Sprintf("link type %v is not understood", f.linkType))
			continue
		}
		data, direction := strip(f.data)
		if !Parse(&c.parsed, data, max(f.length-(len(f.data)-len(data)), len(data))) {
			c.skipped++
			continue
		}
		if direction == Unknown {
			direction = f.direction
		}
		p.Device, p.Direction = f.device, direction
		c.fill(p, data, f)
		return nil
	}
}

// Complaints returns remarks on the file for users, after it has been read.
func (c *Reader) Complaints() (list []string) {
	if c.skipped > 0 {
		list = append(list, fmt.Sprintf("%d of %d frames have no IP packet", c.skipped, c.read))
	}
	if c.unknown > 0 {
		list = append(list, fmt.Sprintf("%d of %d frames are left out", c.unknown, c.read))
	}
	return append(list, c.notes...)
}

// fill makes a packet from the rest of a frame.
func (c *Reader) fill(p *Packet, data []byte, f *frame) {
	length := max(f.length-(len(f.data)-len(data)), len(data))
	// Frames may be padded: bytes behind the packet do not belong to it.
	if c.parsed.Extended {
		data, length = data[:c.parsed.Length], int(c.parsed.Length)
	}
	p.Addr = packet.Address{
		Timestamp: f.when.UnixNano(), Layer: c.layer, Outbound: p.Direction == Out, IPv6: c.parsed.Family == 6,
	}
	p.Data, p.Length, p.Time = data, length, f.when
	p.PID, p.Program, p.Path, p.Verdict = f.pid, f.program, f.path, f.verdict
	p.Lost = f.lost
}
