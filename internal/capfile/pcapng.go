package capfile

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
	"time"
)

// pcapngReader reads the frames of a pcapng file (draft-ietf-opsawg-pcapng): of any number of sections, each in its own
// byte order, with packet blocks of all three kinds. It skips blocks of other types.
type pcapngReader struct {
	in         *bufio.Reader
	order      binary.ByteOrder
	foreign    bool // the section has an unknown version; its blocks are skipped
	interfaces []pcapngInterface
	blocks     int // blocks read
	buf        []byte
	notes      *notes
}

// pcapngInterface is a section's description of an interface.
type pcapngInterface struct {
	name       string
	linkType   linkType
	snap       uint32 // most bytes captured of each frame, 0: all
	resolution uint8  // of times: as a negative power of ten or, with BinaryResolution, of two
	offset     int64  // to add to times, in seconds
}

// BinaryResolution is the bit of a resolution that makes it a power of two.
const BinaryResolution = 0x80

// The lengths of blocks in bytes: type and length in front, length again behind; and of the longest accepted, as in
// libpcap.
const (
	blockHead = 8
	blockTail = 4
	maxBlock  = 16 << 20
)

func newPcapngReader(in *bufio.Reader, n *notes) *pcapngReader {
	return &pcapngReader{in: in, order: binary.LittleEndian, notes: n}
}

// next reads a frame.
func (p *pcapngReader) next(f *frame) error {
	for {
		block, body, err := p.block()
		if err != nil {
			return err
		}
		found := false
		switch block {
		case BlockSection:
			err = p.section(body)
		case BlockInterface:
			err = p.describe(body)
		case BlockPacket, BlockOldPacket:
			found, err = true, p.packet(f, body, block == BlockOldPacket)
		case BlockSimplePacket:
			found, err = true, p.simplePacket(f, body)
		}
		if err != nil {
			return fmt.Errorf("block %d: %w", p.blocks, err)
		}
		if found {
			return nil
		}
	}
}

// block reads the next useful block; its body is valid until the following call.
func (p *pcapngReader) block() (block uint32, body []byte, err error) {
	for {
		block, length, err := p.head()
		if err != nil {
			return 0, nil, err
		}
		rest := int64(length) - blockHead
		if block != BlockSection && p.foreign || !useful(block) {
			n, err := io.CopyN(io.Discard, p.in, rest)
			if err != nil {
				return 0, nil, p.cutOff(err, int(n)+blockHead, length)
			}
			continue
		}
		if length > maxBlock {
			return 0, nil, fmt.Errorf("block %d is damaged, or too long: %d bytes", p.blocks, length)
		}
		if int64(cap(p.buf)) < rest {
			p.buf = make([]byte, max(rest, 1<<16))
		}
		body := p.buf[:rest]
		if n, err := io.ReadFull(p.in, body); err != nil {
			return 0, nil, p.cutOff(err, n+blockHead, length)
		}
		end := len(body) - blockTail
		if again := p.order.Uint32(body[end:]); again != length {
			return 0, nil, fmt.Errorf("block %d is damaged: its length is %d in front and %d behind", p.blocks, length, again)
		}
		return block, body[:end], nil
	}
}

// useful reports whether blocks of a type are read.
func useful(block uint32) bool {
	switch block {
	case BlockSection, BlockInterface, BlockPacket, BlockOldPacket, BlockSimplePacket:
		return true
	}
	return false
}

// head reads the type and the length of the next block. A section block has the byte order in it.
func (p *pcapngReader) head() (block, length uint32, err error) {
	var b [blockHead]byte
	n, err := io.ReadFull(p.in, b[:])
	if err == io.EOF {
		return 0, 0, err
	}
	p.blocks++
	if err != nil {
		return 0, 0, cutOff(err, fmt.Sprintf("the head of block %d", p.blocks), n, len(b))
	}
	least := uint32(blockHead + blockTail)
	if block = p.order.Uint32(b[:]); block == BlockSection { // the same in either byte order
		magic, err := p.in.Peek(4)
		if err != nil {
			return 0, 0, cutOff(err, fmt.Sprintf("block %d", p.blocks), blockHead+len(magic), blockHead+4)
		}
		switch uint32(ByteOrderMagic) {
		case binary.LittleEndian.Uint32(magic):
			p.order = binary.LittleEndian
		case binary.BigEndian.Uint32(magic):
			p.order = binary.BigEndian
		default:
			return 0, 0, fmt.Errorf("block %d is damaged: it begins a section and does not tell its byte order", p.blocks)
		}
		least += 16
	}
	if length = p.order.Uint32(b[4:]); length < least || length%4 != 0 {
		return 0, 0, fmt.Errorf("block %d is damaged: its length is %d bytes", p.blocks, length)
	}
	return block, length, nil
}

func (p *pcapngReader) cutOff(err error, n int, length uint32) error {
	return cutOff(err, fmt.Sprintf("block %d", p.blocks), n, int(length))
}

// section begins a section. Its interfaces have numbers of their own.
func (p *pcapngReader) section(body []byte) error {
	major, minor := p.order.Uint16(body[4:]), p.order.Uint16(body[6:])
	p.foreign = major != 1 || minor != 0 && minor != 2 // 1.2 is 1.0 by another name (4.1)
	if p.foreign {
		p.notes.add(fmt.Sprintf("a section of pcapng version %d.%d is left out; only 1.0 and 1.2 are known", major, minor))
	}
	p.interfaces = p.interfaces[:0]
	return nil
}

var errShortBlock = errors.New("it is damaged: there is less in it than it says")

// describe reads the description of an interface.
func (p *pcapngReader) describe(body []byte) error {
	if len(body) < 8 {
		return errShortBlock
	}
	i := pcapngInterface{linkType: linkType(p.order.Uint16(body)), snap: p.order.Uint32(body[4:]), resolution: 6}
	p.options(body[8:], func(code uint16, value []byte) {
		switch {
		case code == OptionName:
			i.name = string(bytes.TrimRight(value, "\x00"))
		case code == OptionResolution && len(value) >= 1:
			i.resolution = value[0]
		case code == OptionOffset && len(value) >= 8:
			i.offset = int64(p.order.Uint64(value))
		}
	})
	p.interfaces = append(p.interfaces, i)
	return nil
}

// options passes the options of a block to f. It stops at one that does not fit.
func (p *pcapngReader) options(b []byte, f func(code uint16, value []byte)) {
	for len(b) >= 4 {
		code, length := p.order.Uint16(b), int(p.order.Uint16(b[2:]))
		if b = b[4:]; code == OptionEnd || length > len(b) {
			return
		}
		f(code, b[:length])
		b = b[min((length+3)&^3, len(b)):]
	}
}

// packet reads a packet block, of the current kind or the old one.
func (p *pcapngReader) packet(f *frame, body []byte, old bool) error {
	if len(body) < 20 {
		return errShortBlock
	}
	word := func(at int) uint32 { return p.order.Uint32(body[at:]) }
	id := word(0)
	if old {
		id = uint32(p.order.Uint16(body)) // followed by a count of losses
	}
	captured, rest := word(12), body[20:]
	if int64(captured) > int64(len(rest)) {
		return errShortBlock
	}
	if err := p.fill(f, id, rest[:captured], word(16)); err != nil {
		return err
	}
	f.when = p.interfaces[id].time(uint64(word(4))<<32 | uint64(word(8)))
	var comment []byte // about the process
	p.options(rest[min(int64(captured+3)&^3, int64(len(rest))):], func(code uint16, value []byte) {
		switch {
		case code == OptionFlags && len(value) >= 4: // the same code and bits in both kinds
			f.direction = [...]Direction{Unknown, In, Out, Unknown}[p.order.Uint32(value)&3]
		case code == OptionProcess && len(value) >= 4 && !old:
			f.pid = p.order.Uint32(value)
		case code == OptionLost && len(value) >= 8 && !old:
			f.lost = p.order.Uint64(value)
		case code == OptionComment:
			if v := verdictOf(string(value)); v != NoVerdict {
				f.verdict = v
			} else {
				comment = value
			}
		}
	})
	if f.pid != 0 {
		f.program, f.path = processComment(string(comment), f.pid)
	}
	return nil
}

// processComment returns the program and its path from the writer's comment: name[id] path.
func processComment(comment string, pid uint32) (program, path string) {
	program, path, found := strings.Cut(comment, fmt.Sprintf("[%d]", pid))
	if !found {
		return "???", "" // a comment of another writer
	}
	return program, strings.TrimPrefix(path, " ")
}

// simplePacket reads a simple packet block: a frame of the first interface.
func (p *pcapngReader) simplePacket(f *frame, body []byte) error {
	if len(body) < 4 {
		return errShortBlock
	}
	length, rest := p.order.Uint32(body), body[4:]
	captured := length
	if len(p.interfaces) > 0 && p.interfaces[0].snap != 0 {
		captured = min(captured, p.interfaces[0].snap)
	}
	if int64(captured) > int64(len(rest)) {
		return errShortBlock
	}
	f.when = time.Unix(0, 0)
	return p.fill(f, 0, rest[:captured], length)
}

// fill sets the values that frames of all kinds of blocks have.
func (p *pcapngReader) fill(f *frame, id uint32, data []byte, length uint32) error {
	if int64(id) >= int64(len(p.interfaces)) {
		return fmt.Errorf("it has a packet of interface %d, but only %d were described", id, len(p.interfaces))
	}
	if len(data) > maxFrame {
		return fmt.Errorf("its frame has %d bytes, and no frame has more than %d", len(data), maxFrame)
	}
	i := &p.interfaces[id]
	f.data, f.length, f.linkType, f.device, f.direction = data, int(length), i.linkType, i.name, Unknown
	f.pid, f.program, f.path, f.verdict, f.lost = 0, "", "", NoVerdict, 0
	return nil
}

// time returns the time that lies a number of units after 1970.
func (i *pcapngInterface) time(units uint64) time.Time {
	var seconds, nanoseconds uint64
	switch n := uint(i.resolution &^ BinaryResolution); {
	case i.resolution&BinaryResolution == 0:
		seconds, nanoseconds = decimal(units, n)
	case n < 64:
		high, low := bits.Mul64(units&(1<<n-1), 1e9)
		seconds, nanoseconds = units>>n, high<<(64-n)|low>>n
	default:
		high, _ := bits.Mul64(units, 1e9)
		nanoseconds = high >> (n - 64)
	}
	return time.Unix(int64(seconds)+i.offset, int64(nanoseconds))
}

// decimal returns the seconds and nanoseconds of units of 10⁻ⁿ seconds.
func decimal(units uint64, n uint) (seconds, nanoseconds uint64) {
	for ; n > 9; n-- { // finer than nanoseconds
		units /= 10
	}
	perSecond, nanosecondsPer := uint64(1), uint64(1e9)
	for range n {
		perSecond, nanosecondsPer = perSecond*10, nanosecondsPer/10
	}
	return units / perSecond, units % perSecond * nanosecondsPer
}
