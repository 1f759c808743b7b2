package windows

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// Control codes (windows-driver.md 4).
const (
	codeInitialize = 0x0012E486
	codeStartup    = 0x0012E489
	codeRecv       = 0x0012648E
	codeSend       = 0x0012E491
	codeSetParam   = 0x0012E495
	codeGetParam   = 0x0012649A
	codeShutdown   = 0x0012E49D
)

// Parameters (specification: api.md 1.1).
const (
	paramQueueLength = 0 // packets
	paramQueueTime   = 1 // milliseconds
	paramQueueSize   = 2 // bytes
)

const (
	batchMax     = 255   // packets of a RECV or SEND
	packetMax    = 65575 // bytes of the longest packet
	priorityBias = 30000
	versionMajor = 2
	versionMinor = 2
)

// record is the request record: the input buffer of every control call, little-endian (windows-driver.md 4.1).
type record [16]byte

func (r *record) set64(low, high uint64) {
	binary.LittleEndian.PutUint64(r[0:], low)
	binary.LittleEndian.PutUint64(r[8:], high)
}

// initialize asks for a handle of a layer with a priority and flags.
func (r *record) initialize(layer packet.Layer, priority int16, flags uint64) {
	r.set64(uint64(layer)|uint64(int32(priority)+priorityBias)<<32, flags)
}

// startup starts capturing the kinds of packets in the hints.
func (r *record) startup(hints uint64) { r.set64(hints, 0) }

// recv asks for packets. addresses and length are pointers in this process: to the address array, and to the 32-bit word
// with its size in bytes.
func (r *record) recv(addresses, length uintptr) { r.set64(uint64(addresses), uint64(length)) }

// send injects packets; size is the size of the address array in bytes.
func (r *record) send(addresses uintptr, size int) { r.set64(uint64(addresses), uint64(size)) }

// shutdown ends receiving, sending or both.
func (r *record) shutdown(how engine.How) { r.set64(uint64(how), 0) }

// setParam sets a parameter.
func (r *record) setParam(param uint32, value uint64) { r.set64(value, uint64(param)) }

// getParam asks for a parameter.
func (r *record) getParam(param uint32) { r.set64(uint64(param), 0) }

// The magic words of the version record: "$WdivDLL" of clients, "#WdivSYS" of the driver.
const (
	magicClient = 0x4C4C447669645724
	magicDriver = 0x5359537669645723
)

// versionSize is the size of the version record, in bytes.
const versionSize = 64

// versionRecord is exchanged by INITIALIZE, little-endian (windows-driver.md 5.1).
type versionRecord [versionSize]byte

// offer sets the request of a client with pointers of the given number of bits.
func (v *versionRecord) offer(bits uint32) {
	le := binary.LittleEndian
	*v = versionRecord{}
	le.PutUint64(v[0:], magicClient)
	le.PutUint32(v[8:], versionMajor)
	le.PutUint32(v[12:], versionMinor)
	le.PutUint32(v[16:], bits)
}

// errForeignDriver means that the driver behind the device does not speak this protocol.
var errForeignDriver = errors.New("another driver, or another version of it, answers")

// check judges the driver's answer. The minor version does not matter.
func (v *versionRecord) check() error {
	le := binary.LittleEndian
	if magic := le.Uint64(v[0:]); magic != magicDriver {
		return fmt.Errorf("%w (magic %#x)", errForeignDriver, magic)
	}
	if major := le.Uint32(v[8:]); major < versionMajor {
		return fmt.Errorf("%w (version %d.%d)", errForeignDriver, major, le.Uint32(v[12:]))
	}
	return nil
}

// String returns the version and the pointer size in an answer.
func (v *versionRecord) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%d.%d, %d-bit", le.Uint32(v[8:]), le.Uint32(v[12:]), le.Uint32(v[16:]))
}
