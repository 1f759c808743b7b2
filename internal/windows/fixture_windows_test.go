package windows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
	"unsafe"

	sys "golang.org/x/sys/windows"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// testDriver returns the path of the test driver.
func testDriver(t testing.TB) string {
	t.Helper()
	path := os.Getenv(envTestDriver)
	if path == "" {
		t.Skip(envTestDriver + " is not set: the tests of the driver run under Wine, see TestWine")
	}
	return path
}

// Control codes of the test driver; see testdata/driver/model.h.
const (
	testReset   = 0x00122000 + 4*iota
	testCapture // in: address, data
	testFail    // in: code, status, skip, count, how, slot
	testVersion // in: magic, major, minor
	testMode    // in: the mode bits
	testLog     // out: an entry
	testCount   // out: census
	testClient  // in: id of this process on the Linux below Wine
	testClock   // in: milliseconds
	testRelease
	testLeft // out: address, data
)

const (
	modeLoop   = 1 // packets that leave come back
	modeLog    = 2 // requests are logged
	modeAtOnce = 4 // requests complete within their call
	modeKeep   = 8 // packets that leave are kept
)

// The ways in which a request fails.
const (
	instead  = iota // it is not carried out
	after           // it is carried out, and its bytes are reported
	held            // it waits until it is released or cancelled
	slotSoft        // SEND: a packet is refused, the others go out
	slotHard        // SEND: a packet ends the call, those before it are out
)

// NT status values (specification: api.md 20).
const (
	statusInvalidParameter      = 0xC000000D
	statusInvalidDeviceState    = 0xC0000184
	statusPipeEmpty             = 0xC00000D9
	statusBufferTooSmall        = 0xC0000023
	statusHopLimit              = 0xC00104D0 // the generic form of 1232: Wine 8 does not know 0xC000A012
	statusInsufficientResources = 0xC000009A
	statusInvalidDeviceRequest  = 0xC0000010
	statusAccessViolation       = 0xC0000005
	statusCancelled             = 0xC0000120
)

// fixture is the test driver, through its own control codes.
type fixture struct {
	t testing.TB
	d *device
}

// load starts the test driver if necessary, and resets it.
func load(t testing.TB) *fixture {
	t.Helper()
	d, err := connect(false, testDriver(t))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t, d}
	f.ioctl(testClient, words(hostProcess(t)), nil)
	f.ioctl(testReset, nil, nil)
	t.Cleanup(func() {
		f.ioctl(testReset, nil, nil)
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// hostProcess returns the id of this process on the Linux below Wine, where the test driver reads and writes its memory.
// Windows does not know that id, so a few instructions ask the kernel.
func hostProcess(t testing.TB) uint32 {
	t.Helper()
	getpid := []byte{
		0xB8, 39, 0, 0, 0, // mov eax, getpid
		0x0F, 0x05, // syscall
		0xC3, // ret
	}
	at, err := sys.VirtualAlloc(0, 4096, sys.MEM_COMMIT|sys.MEM_RESERVE, sys.PAGE_EXECUTE_READWRITE)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.VirtualFree(at, 0, sys.MEM_RELEASE)
	var copied uintptr
	if err := sys.WriteProcessMemory(sys.CurrentProcess(), at, &getpid[0], uintptr(len(getpid)), &copied); err != nil {
		t.Fatal(err)
	}
	id, _, _ := syscall.SyscallN(at)
	return uint32(id)
}

// ioctl makes a call of the test driver's own and returns the number of bytes filled in out.
func (f *fixture) ioctl(code uint32, in, out []byte) int {
	f.t.Helper()
	n, err := f.try(code, in, out)
	if err != nil {
		f.t.Fatalf("test driver, code %#x: %v", code, err)
	}
	return n
}

func (f *fixture) try(code uint32, in, out []byte) (int, error) {
	op, err := newOperation()
	if err != nil {
		return 0, err
	}
	defer op.close()
	err = sys.DeviceIoControl(f.d.file, code, unsafe.SliceData(in), uint32(len(in)), unsafe.SliceData(out), uint32(len(out)), &op.done, &op.overlapped)
	if err == sys.ERROR_IO_PENDING {
		err = op.wait(f.d.file)
	}
	return int(op.done), err
}

// queue makes a packet, or an event, arrive from the network.
func (f *fixture) queue(p packet.Packet) {
	f.t.Helper()
	in, _ := p.Addr.AppendBinary(nil)
	f.ioctl(testCapture, append(in, p.Data...), nil)
}

// fail makes requests fail instead of being carried out: the next count after skip ones.
func (f *fixture) fail(code, status, skip, count uint32) {
	f.t.Helper()
	f.failAt(instead, 0, code, status, skip, count)
}

// failAt makes requests fail in a way; slot is the packet of a batch that fails, for the ways about one packet.
func (f *fixture) failAt(how, slot, code, status, skip, count uint32) {
	f.t.Helper()
	f.ioctl(testFail, words(code, status, skip, count, how, slot), nil)
}

// hold makes the next count requests of a code wait until they are released or cancelled.
func (f *fixture) hold(code, count uint32) {
	f.t.Helper()
	f.failAt(held, 0, code, 0, 0, count)
}

// release releases held requests.
func (f *fixture) release() {
	f.t.Helper()
	f.ioctl(testRelease, nil, nil)
}

// pass lets time pass in the driver, whose clock otherwise stands still.
func (f *fixture) pass(d time.Duration) {
	f.t.Helper()
	f.ioctl(testClock, words(uint32(d.Milliseconds())), nil)
}

// left returns the packets that have left the stack since the last call, in modeKeep.
func (f *fixture) left() (all []packet.Packet) {
	f.t.Helper()
	out := make([]byte, 1<<17)
	for {
		n := f.ioctl(testLeft, nil, out)
		if n == 0 {
			return all
		}
		var p packet.Packet
		if err := p.Addr.UnmarshalBinary(out[:packet.AddressSize]); err != nil {
			f.t.Fatal(err)
		}
		p.Data = bytes.Clone(out[packet.AddressSize:n])
		all = append(all, p)
	}
}

func (f *fixture) mode(bits uint32) { f.ioctl(testMode, words(bits), nil) }

// words are 32-bit numbers, little-endian.
func words(ws ...uint32) []byte {
	var b []byte
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// entry is a request in the driver's log.
type entry struct {
	code   uint32
	record [16]byte
	data   []byte
}

// log returns the requests since the last call.
func (f *fixture) log() []entry {
	f.t.Helper()
	var all []entry
	out := make([]byte, 1<<20)
	for {
		n := f.ioctl(testLog, nil, out)
		if n == 0 {
			return all
		}
		e := entry{code: binary.LittleEndian.Uint32(out), data: bytes.Clone(out[20:n])}
		copy(e.record[:], out[4:])
		all = append(all, e)
	}
}

// census counts the driver's objects.
type census struct{ contexts, pending, queued, sends, held, left uint32 }

func (f *fixture) census() census {
	f.t.Helper()
	var c census
	f.ioctl(testCount, nil, unsafe.Slice((*byte)(unsafe.Pointer(&c)), unsafe.Sizeof(c)))
	return c
}

// eventually waits until the census satisfies the condition.
func (f *fixture) eventually(what string, ok func(census) bool) {
	f.t.Helper()
	for range 2000 {
		if ok(f.census()) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.t.Fatalf("%s: never; it is %+v", what, f.census())
}

// config is a test's configuration of a handle.
func config(t testing.TB, text string, layer packet.Layer, flags uint64) engine.Config {
	t.Helper()
	p, err := progtest.Compile(text, layer, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	return engine.Config{Program: p, Flags: flags, Limits: defaults, Driver: os.Getenv(envTestDriver)}
}

// open opens a handle that is closed with the test.
func open(t testing.TB, cfg engine.Config) *client {
	t.Helper()
	h, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, h.(*handle))
}

// network opens a handle at the layer NETWORK that diverts matching packets.
func network(t testing.TB, text string) *client {
	t.Helper()
	return open(t, config(t, text, packet.LayerNetwork, 0))
}

// numberOf returns the Windows error number in an error.
func numberOf(err error) uint32 {
	var number sys.Errno
	if !errors.As(err, &number) {
		return 0
	}
	return uint32(number)
}
