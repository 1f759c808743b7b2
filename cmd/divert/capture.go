package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// captureReader reads the IP packets of a pcap or pcapng file, compressed with gzip or not.
type captureReader struct {
	in     *bufio.Reader
	frames frameReader
	frame  frame
	notes  notes

	layer  divert.Layer
	addr   divert.Address
	parsed packet.Parsed

	read    int // frames
	skipped int // of them, no IP packets
	unknown int // of them, of link types that are not understood
}

// frame is a frame of a capture file. Data is good until the next one is read.
type frame struct {
	data      []byte
	length    int // on the wire, as the file says
	when      time.Time
	linkType  linkType
	device    string    // "" if the file does not tell it
	direction direction // as far as the file tells it

	pid           uint32 // the process of the packet, 0 if the file does not tell it
	program, path string
}

// frameReader reads a file of one of the formats. At the end of the file next returns io.EOF; if that comes too early,
// an error that wraps io.ErrUnexpectedEOF.
type frameReader interface{ next(f *frame) error }

// notes are what is to be said about a file at its end, each once.
type notes []string

func (n *notes) add(text string) {
	if !slices.Contains(*n, text) {
		*n = append(*n, text)
	}
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
	switch {
	case err == io.EOF && len(magic) == 0:
		return nil, errors.New("the capture file is empty")
	case err != nil:
		return nil, fmt.Errorf("the capture file: %w", cutOff(err, "the header of the file", len(magic), pcapHeader))
	}
	order := pcapOrder(magic)
	switch {
	case binary.LittleEndian.Uint32(magic) == blockSection:
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
		return nil, fmt.Errorf("the file is no pcap or pcapng file: it begins with % x", magic)
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

// next reads the next IP packet to r, which is good until the following call. It returns io.EOF at the end.
func (c *captureReader) next(r *record) error {
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
		if !c.parsed.Parse(data) {
			c.skipped++
			continue
		}
		if direction == directionUnknown {
			direction = f.direction
		}
		r.device, r.direction = f.device, direction
		c.fill(r, data, f)
		return nil
	}
}

// complaints are what a user should know of the file when it has been read.
func (c *captureReader) complaints() (list []string) {
	if c.skipped > 0 {
		list = append(list, fmt.Sprintf("%d of %d frames have no IP packet", c.skipped, c.read))
	}
	if c.unknown > 0 {
		list = append(list, fmt.Sprintf("%d of %d frames are left out", c.unknown, c.read))
	}
	return append(list, c.notes...)
}

// fill makes the record of a packet, which is the end of a frame.
func (c *captureReader) fill(r *record, data []byte, f *frame) {
	length := max(f.length-(len(f.data)-len(data)), len(data))
	// Frames may be padded: what lies behind the packet is none of it.
	if c.parsed.Extended {
		data, length = data[:c.parsed.Length], int(c.parsed.Length)
	}
	c.addr = divert.Address{
		Timestamp: f.when.UnixNano(), Layer: c.layer, Outbound: r.direction == directionOut, IPv6: c.parsed.Family == 6,
	}
	r.data, r.length, r.when, r.addr, r.live = data, length, f.when, &c.addr, false
	r.pid, r.program, r.path = f.pid, f.program, f.path
}
