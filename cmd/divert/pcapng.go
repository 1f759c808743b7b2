package main

import (
	"encoding/binary"
	"io"
	"runtime"
	"strings"
)

// captureWriter writes packets to a pcapng file (draft-ietf-opsawg-pcapng): one interface block for each
// interface, before its first packet, and packet blocks with the direction. Interfaces have the link type
// RAW and times in nanoseconds. It allocates nothing per packet.
type captureWriter struct {
	w      io.Writer
	filter string            // goes to the interface blocks
	ids    map[string]uint32 // the interface blocks so far, by device
	buf    []byte
}

// The types of blocks and options (draft-ietf-opsawg-pcapng 4.1 to 4.3).
const (
	blockSection   = 0x0A0D0D0A
	blockInterface = 1
	blockPacket    = 6

	optionEnd         = 0
	optionApplication = 4 // of a section
	optionOS          = 3
	optionName        = 2 // of an interface
	optionResolution  = 9
	optionFilter      = 11
	optionFlags       = 2 // of a packet

	byteOrderMagic  = 0x1A2B3C4D
	nanoseconds     = 9 // as a negative power of ten
	filterIsText    = 0 // the first byte of optionFilter
	unknownLength   = ^uint64(0)
	maxOptionLength = 0xffff
)

// newCaptureWriter begins a file.
func newCaptureWriter(w io.Writer, filter string) (*captureWriter, error) {
	c := &captureWriter{w: w, filter: filter, ids: map[string]uint32{}}
	c.open(blockSection)
	c.word(byteOrderMagic)
	c.word(1) // version 1.0
	c.buf = binary.LittleEndian.AppendUint64(c.buf, unknownLength)
	c.option(optionOS, runtime.GOOS)
	c.option(optionApplication, "divert "+buildVersion())
	c.option(optionEnd, "")
	return c, c.close()
}

// write writes a packet.
func (c *captureWriter) write(r *record) error {
	id, ok := c.ids[r.device]
	if !ok {
		id = uint32(len(c.ids))
		c.ids[r.device] = id
		if err := c.describe(r.device); err != nil {
			return err
		}
	}
	at := uint64(r.when.UnixNano())
	c.open(blockPacket)
	c.word(id)
	c.word(uint32(at >> 32))
	c.word(uint32(at))
	c.word(uint32(len(r.data)))
	c.word(uint32(r.length))
	c.buf = append(c.buf, r.data...)
	c.pad()
	if flags := directions[r.direction].flags; flags != 0 {
		c.buf = binary.LittleEndian.AppendUint32(c.buf, optionFlags|4<<16) // code and length
		c.word(flags)
		c.option(optionEnd, "")
	}
	return c.close()
}

// describe writes the block of an interface.
func (c *captureWriter) describe(device string) error {
	c.open(blockInterface)
	c.word(uint32(linkTypeRaw))
	c.word(0) // no limit to the length of packets
	if device != "" {
		c.option(optionName, strings.ToValidUTF8(device, "\uFFFD")) // strings are UTF-8
	}
	if c.filter != "" && len(c.filter) < maxOptionLength {
		c.option(optionFilter, string(rune(filterIsText))+c.filter)
	}
	c.option(optionResolution, string(rune(nanoseconds)))
	c.option(optionEnd, "")
	return c.close()
}

// open begins a block; its length is filled in by close.
func (c *captureWriter) open(block uint32) {
	c.buf = c.buf[:0]
	c.word(block)
	c.word(0)
}

// close ends the block and writes it.
func (c *captureWriter) close() error {
	n := uint32(len(c.buf) + 4)
	binary.LittleEndian.PutUint32(c.buf[4:], n)
	c.word(n)
	_, err := c.w.Write(c.buf)
	return err
}

func (c *captureWriter) word(v uint32) { c.buf = binary.LittleEndian.AppendUint32(c.buf, v) }

// option appends an option.
func (c *captureWriter) option(code uint16, value string) {
	c.buf = binary.LittleEndian.AppendUint16(c.buf, code)
	c.buf = binary.LittleEndian.AppendUint16(c.buf, uint16(len(value)))
	c.buf = append(c.buf, value...)
	c.pad()
}

// pad fills up to a multiple of 4 bytes.
func (c *captureWriter) pad() {
	for len(c.buf)%4 != 0 {
		c.buf = append(c.buf, 0)
	}
}
