package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/opendivert/divert/internal/capfile"
)

// captureWriter writes packets to a pcapng file (draft-ietf-opsawg-pcapng): an interface block before the first packet
// of each interface; packet blocks with direction, number and process; and at the end the statistics of each interface.
// Interfaces have the link type RAW and times in nanoseconds. Writing a packet allocates nothing.
type captureWriter struct {
	w       io.Writer
	filter  string                      // for the interface blocks
	ids     map[captureInterface]uint32 // the interface blocks so far
	counts  []uint64                    // of packets, by interface block
	packets uint64
	first   time.Time // of the first packet
	last    time.Time // of the last
	buf     []byte
}

// captureInterface is an interface of a capture file: one of the host, or the one for packets that divert sends.
type captureInterface struct {
	device string
	sent   bool
}

const (
	nanoseconds     = 9 // as a negative power of ten
	filterIsText    = 0 // the first byte of capfile.OptionFilter
	unknownLength   = ^uint64(0)
	maxOptionLength = 0xffff
)

// newCaptureWriter begins a file.
func newCaptureWriter(w io.Writer, filter string) (*captureWriter, error) {
	c := &captureWriter{w: w, filter: filter, ids: map[captureInterface]uint32{}}
	c.open(capfile.BlockSection)
	c.word(capfile.ByteOrderMagic)
	c.word(1) // version 1.0
	c.buf = binary.LittleEndian.AppendUint64(c.buf, unknownLength)
	c.option(capfile.OptionOS, runtime.GOOS)
	c.option(capfile.OptionApplication, "divert "+buildVersion())
	c.option(capfile.OptionEnd, "")
	return c, c.close()
}

// write writes a packet.
func (c *captureWriter) write(r *record) error {
	on := captureInterface{r.device, r.sent}
	id, ok := c.ids[on]
	if !ok {
		id = uint32(len(c.ids))
		c.ids[on] = id
		c.counts = append(c.counts, 0)
		if err := c.describe(on); err != nil {
			return err
		}
	}
	if c.packets == 0 {
		c.first = r.when
	}
	c.last = r.when
	c.counts[id]++
	c.packets++
	c.open(capfile.BlockPacket)
	c.word(id)
	c.time(r.when)
	c.word(uint32(len(r.data)))
	c.word(uint32(r.length))
	c.buf = append(c.buf, r.data...)
	c.pad()
	if flags := directions[r.direction].flags; flags != 0 {
		c.head(capfile.OptionFlags, 4)
		c.word(flags)
	}
	if r.lost > 0 {
		c.number(capfile.OptionLost, r.lost)
	}
	c.number(capfile.OptionPacketID, c.packets)
	if r.queue > 0 {
		c.head(capfile.OptionQueue, 4)
		c.word(uint32(r.queue))
	}
	c.process(r)
	if r.verdict != capfile.NoVerdict {
		name := r.verdict.String()
		c.head(capfile.OptionComment, uint16(len(capfile.VerdictComment)+len(name)))
		c.buf = append(append(c.buf, capfile.VerdictComment...), name...)
		c.pad()
	}
	c.option(capfile.OptionEnd, "")
	return c.close()
}

// process writes the process of a packet: its number in the option that the format has for it, and name and path of its
// program in a comment, which every reader shows.
func (c *captureWriter) process(r *record) {
	if r.pid == 0 {
		return
	}
	c.head(capfile.OptionProcess, 8)
	c.word(r.pid)
	c.word(0) // no thread
	at := len(c.buf)
	c.head(capfile.OptionComment, 0)
	c.buf = append(c.buf, strings.ToValidUTF8(r.program, "\uFFFD")...)
	c.buf = append(strconv.AppendUint(append(c.buf, '['), uint64(r.pid), 10), ']')
	if r.path != "" {
		c.buf = append(append(c.buf, ' '), strings.ToValidUTF8(r.path, "\uFFFD")...)
	}
	if end := at + 4 + maxComment; len(c.buf) > end {
		for !utf8.RuneStart(c.buf[end]) { // never split a character of several bytes
			end--
		}
		c.buf = c.buf[:end]
	}
	binary.LittleEndian.PutUint16(c.buf[at+2:], uint16(len(c.buf)-at-4))
	c.pad()
}

// maxComment limits the comment of a process, in bytes: any path that can be opened is shorter.
const maxComment = 8192

// statistics writes the number of packets of each interface, and the number of lost copies. Lost copies cannot be
// attributed to one of several interfaces; then a comment of the first interface has the sum.
func (c *captureWriter) statistics(lost uint64) error {
	for id, n := range c.counts {
		c.open(capfile.BlockCounts)
		c.word(uint32(id))
		c.time(c.last)
		c.head(capfile.OptionStart, 8)
		c.time(c.first)
		c.head(capfile.OptionEndTime, 8)
		c.time(c.last)
		c.number(capfile.OptionAccepted, n)
		switch {
		case len(c.counts) == 1:
			c.number(capfile.OptionDropped, lost)
		case id == 0 && lost > 0:
			c.option(capfile.OptionComment, fmt.Sprintf("%d packets were lost, of all interfaces together", lost))
		}
		c.option(capfile.OptionEnd, "")
		if err := c.close(); err != nil {
			return err
		}
	}
	return nil
}

// time writes a time as the two words of a block.
func (c *captureWriter) time(t time.Time) {
	at := uint64(t.UnixNano())
	c.word(uint32(at >> 32))
	c.word(uint32(at))
}

// number writes an option of 8 bytes.
func (c *captureWriter) number(code uint16, v uint64) {
	c.head(code, 8)
	c.buf = binary.LittleEndian.AppendUint64(c.buf, v)
}

// head begins an option.
func (c *captureWriter) head(code, length uint16) {
	c.buf = binary.LittleEndian.AppendUint16(c.buf, code)
	c.buf = binary.LittleEndian.AppendUint16(c.buf, length)
}

// describe writes the block of an interface.
func (c *captureWriter) describe(i captureInterface) error {
	c.open(capfile.BlockInterface)
	c.word(uint32(capfile.LinkTypeRaw))
	c.word(0)                                       // no limit to the length of packets
	name := strings.ToValidUTF8(i.device, "\uFFFD") // the format requires UTF-8
	if i.sent {
		c.option(capfile.OptionDescription, "packets that divert sent on "+name)
		name += ":sent"
	}
	if name != "" {
		c.option(capfile.OptionName, name)
	}
	if c.filter != "" && len(c.filter) < maxOptionLength {
		c.option(capfile.OptionFilter, string(rune(filterIsText))+c.filter)
	}
	c.option(capfile.OptionResolution, string(rune(nanoseconds)))
	c.option(capfile.OptionEnd, "")
	return c.close()
}

// open begins a block; close fills in its length.
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
	c.head(code, uint16(len(value)))
	c.buf = append(c.buf, value...)
	c.pad()
}

// pad fills up to a multiple of 4 bytes.
func (c *captureWriter) pad() {
	for len(c.buf)%4 != 0 {
		c.buf = append(c.buf, 0)
	}
}
