package windows

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"unsafe"

	sys "golang.org/x/sys/windows"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// device is an open file of the driver's device, and so a handle in the driver's eyes. Its methods may be
// called from several goroutines; each call works with an operation of its own.
type device struct {
	file    sys.Handle
	version versionRecord // what the driver answered

	mu       sync.Mutex
	closed   bool
	free     []*operation // not in use, for the next calls
	inUse    int
	receives []*operation // receive calls on their way, to be cancelled
	idle     *sync.Cond   // signalled when inUse becomes 0
}

// openDevice opens the device, which fails with the Windows error number as it is.
func openDevice() (*device, error) {
	path, err := sys.UTF16PtrFromString(devicePath)
	if err != nil {
		return nil, err
	}
	file, err := sys.CreateFile(path, sys.GENERIC_READ|sys.GENERIC_WRITE, 0, nil, sys.OPEN_EXISTING,
		sys.FILE_ATTRIBUTE_NORMAL|sys.FILE_FLAG_OVERLAPPED, 0)
	if err != nil {
		return nil, err
	}
	d := &device{file: file}
	d.idle = sync.NewCond(&d.mu)
	return d, nil
}

// acquire returns an operation for a call; release takes it back.
func (d *device) acquire(receives bool) (*operation, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, net.ErrClosed
	}
	var op *operation
	if n := len(d.free); n > 0 {
		op, d.free = d.free[n-1], d.free[:n-1]
	} else {
		var err error
		if op, err = newOperation(); err != nil {
			return nil, err
		}
	}
	d.inUse++
	op.cancelled = false
	if receives {
		d.receives = append(d.receives, op)
	}
	return op, nil
}

func (d *device) release(op *operation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.receives, op); i >= 0 {
		last := len(d.receives) - 1
		d.receives[i] = d.receives[last]
		d.receives[last] = nil
		d.receives = d.receives[:last]
	}
	d.free = append(d.free, op)
	if d.inUse--; d.inUse == 0 {
		d.idle.Broadcast()
	}
}

// interrupt cancels the receive calls that wait.
func (d *device) interrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cancelReceives()
}

// cancelReceives does what interrupt does, with the lock held.
func (d *device) cancelReceives() {
	for _, op := range d.receives {
		op.cancel(d.file)
	}
}

// cancelStarted cancels a receive call that has found out by itself that it must stop.
func (d *device) cancelStarted(op *operation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	op.cancel(d.file)
}

// close cancels what waits, waits for what is under way, and closes the device.
func (d *device) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return net.ErrClosed
	}
	d.closed = true
	d.cancelReceives()
	for d.inUse > 0 {
		d.idle.Wait()
	}
	for _, op := range d.free {
		op.close()
	}
	d.free = nil
	return wrap("close the device", sys.CloseHandle(d.file))
}

// isClosed reports whether close has been called.
func (d *device) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

// receive implements driver.
func (d *device) receive(w engine.Wait, ps []packet.Packet, layer packet.Layer) (int, error) {
	op, err := d.acquire(true)
	if err != nil {
		return 0, err
	}
	defer d.release(op)
	if w.Ended() {
		return 0, engine.ErrInterrupted
	}
	ps = ps[:min(len(ps), batchMax)]
	buffer := ps[0].Buffer(bufferSize(len(ps), layer))
	op.length = uint32(len(ps) * packet.AddressSize)
	op.record.recv(uintptr(unsafe.Pointer(&op.addresses)), uintptr(unsafe.Pointer(&op.length)))
	op.memory.Pin(&buffer[0])
	err = op.start(d.file, codeRecv, buffer)
	if err == sys.ERROR_IO_PENDING {
		if w.Ended() || d.isClosed() { // too late for whoever ended it to find the operation
			d.cancelStarted(op)
		}
		err = op.wait(d.file)
	}
	op.memory.Unpin()
	switch err {
	case nil:
	case sys.ERROR_OPERATION_ABORTED:
		return 0, engine.ErrInterrupted
	case sys.ERROR_NO_DATA:
		return 0, io.EOF
	default:
		return 0, wrap("receive", err)
	}
	if int(op.length) > len(op.addresses) || int(op.done) > len(buffer) {
		return 0, errBadBatch
	}
	b := batch{layer: layer, data: buffer[:op.done], addresses: op.addresses[:op.length]}
	return b.unpack(ps)
}

// objectMax is how long the data of a REFLECT event may be, in bytes.
const objectMax = 12288

// bufferSize is how much room a receive call gives to n items, in bytes. The first always fits, however
// long it is; of the others as many as fit come along.
func bufferSize(n int, layer packet.Layer) int {
	switch layer {
	case packet.LayerFlow, packet.LayerSocket:
		return 1 // they have no data
	case packet.LayerReflect:
		return min(n, 8) * objectMax
	}
	return packetMax + min(n-1, 128)*1500
}

// send implements driver.
func (d *device) send(ps []packet.Packet) (sent int, last error) {
	op, err := d.acquire(false)
	if err != nil {
		return 0, err
	}
	defer d.release(op)
	for len(ps) > 0 {
		done, err := op.out.fill(ps)
		if err != nil {
			last = err
		}
		ps = ps[done:]
		if op.out.count == 0 {
			continue
		}
		op.record.send(uintptr(unsafe.Pointer(unsafe.SliceData(op.out.addresses))), len(op.out.addresses))
		op.memory.Pin(unsafe.SliceData(op.out.addresses))
		op.memory.Pin(unsafe.SliceData(op.out.data))
		err = op.run(d.file, codeSend, op.out.data)
		op.memory.Unpin()
		n, ended := accepted(op.out.count, err)
		sent += n
		if err != nil {
			last = wrap("send", err)
		}
		if ended {
			break
		}
	}
	return sent, last
}

// accepted returns how many packets of a batch the driver took in spite of an error, and whether further
// ones are useless. The driver tells no number: of a batch that fails for one of its packets the others are
// taken to be accepted (specification: api.md 8).
func accepted(count int, err error) (n int, ended bool) {
	switch err {
	case nil:
		return count, false
	case sys.ERROR_NO_DATA, sys.ERROR_BAD_COMMAND, sys.ERROR_INVALID_PARAMETER, sys.ERROR_OPERATION_ABORTED:
		return 0, true
	case sys.ERROR_INSUFFICIENT_BUFFER, sys.ERROR_NOACCESS, sys.ERROR_NO_SYSTEM_RESOURCES:
		return 0, false
	}
	return count - 1, false
}

// control makes a call whose record set sets; data is its output buffer, which may be empty.
func (d *device) control(what string, code uint32, data []byte, set func(*record)) error {
	op, err := d.acquire(false)
	if err != nil {
		return err
	}
	defer d.release(op)
	set(&op.record)
	if len(data) > 0 {
		op.memory.Pin(&data[0])
	}
	err = op.run(d.file, code, data)
	op.memory.Unpin()
	return wrap(what, err)
}

// begin does the handshake, after which the device is a handle that captures nothing yet.
func (d *device) begin(layer packet.Layer, priority int16, flags uint64) error {
	version := new(versionRecord)
	version.offer(uint32(unsafe.Sizeof(uintptr(0))) * 8)
	err := d.control("begin with the driver", codeInitialize, version[:], func(r *record) {
		r.initialize(layer, priority, flags)
	})
	if err == nil {
		if foreign := version.check(); foreign != nil {
			err = newError("begin with the driver", sys.Errno(errnoOldDriver), foreign.Error())
		}
	}
	if err != nil {
		return err
	}
	d.version = *version
	return nil
}

// start does the handshake and uploads the filter. The packets that it matches are captured from then on.
func (d *device) start(layer packet.Layer, priority int16, p *plan) error {
	if err := d.begin(layer, priority, p.flags); err != nil {
		return err
	}
	filter := slices.Clone(p.instructions)
	return d.control("start with the filter", codeStartup, filter, func(r *record) { r.startup(p.hints) })
}

// setParam implements driver.
func (d *device) setParam(param uint32, value uint64) error {
	return d.control("set a parameter", codeSetParam, nil, func(r *record) { r.setParam(param, value) })
}

// getParam implements driver.
func (d *device) getParam(param uint32) (uint64, error) {
	data := make([]byte, 8)
	err := d.control("get a parameter", codeGetParam, data, func(r *record) { r.getParam(param) })
	return *(*uint64)(unsafe.Pointer(&data[0])), err
}

// shutdown implements driver.
func (d *device) shutdown(how engine.How) error {
	return d.control("shut down", codeShutdown, nil, func(r *record) { r.shutdown(how) })
}

// describe implements driver.
func (d *device) describe() string { return "WinDivert driver " + d.version.String() }

// wrap makes an Error of a Windows error number; nil stays nil.
func wrap(op string, err error) error {
	var number sys.Errno
	if err == nil || !errors.As(err, &number) {
		return err
	}
	return newError(op, number, "")
}

func newError(op string, number sys.Errno, detail string) *Error {
	return &Error{Op: op, Code: uint32(number), detail: detail, errno: number}
}
