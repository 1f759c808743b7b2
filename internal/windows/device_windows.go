package windows

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	sys "golang.org/x/sys/windows"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// device is an open file of the driver's device, which the driver sees as a handle. Its methods may be called from
// several goroutines; each call works with an operation of its own.
type device struct {
	file    sys.Handle
	version versionRecord // the driver's answer
	mark    sys.Handle    // shows the handle to divert clean; 0 if there is none

	closed atomic.Bool // set with the lock held

	mu   sync.Mutex
	free []*operation // not in use, for the next calls
	busy []*operation // of calls on their way, to be cancelled
	idle *sync.Cond   // signalled when busy becomes empty
}

// openDevice opens the device. Its error is the plain Windows error number.
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
	if d.closed.Load() {
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
	op.cancelled, op.receives = false, receives
	d.busy = append(d.busy, op)
	return op, nil
}

func (d *device) release(op *operation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	last := len(d.busy) - 1
	d.busy[slices.Index(d.busy, op)] = d.busy[last]
	d.busy[last] = nil
	d.busy = d.busy[:last]
	d.free = append(d.free, op)
	if last == 0 {
		d.idle.Broadcast()
	}
}

// interrupt cancels the receive calls that wait.
func (d *device) interrupt() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, op := range d.busy {
		if op.receives {
			op.cancel(d.file)
		}
	}
}

// cancelStarted cancels a request that was issued too late for the canceller to find it.
func (d *device) cancelStarted(op *operation) {
	d.mu.Lock()
	defer d.mu.Unlock()
	op.cancel(d.file)
}

// close cancels the operations under way, waits until they have ended, and closes the device.
func (d *device) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed.Swap(true) {
		return net.ErrClosed
	}
	for _, op := range d.busy {
		op.cancel(d.file)
	}
	for len(d.busy) > 0 {
		d.idle.Wait()
	}
	for _, op := range d.free {
		op.close()
	}
	d.free = nil
	err := wrap("close the device", sys.CloseHandle(d.file))
	if d.mark != 0 {
		_ = sys.CloseHandle(d.mark)
	}
	return err
}

// detach returns the device's file and gives it up. No call may be under way.
func (d *device) detach() uintptr {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed.Store(true)
	for _, op := range d.free {
		op.close()
	}
	d.free = nil
	return uintptr(d.file)
}

// run issues a request and waits until it is complete. If w ended before the request was issued, run cancels it. The
// driver leaves every request pending, however soon it completes. A request cancelled by the closing of the device fails
// with net.ErrClosed.
func (d *device) run(op *operation, code uint32, data []byte, w engine.Wait) error {
	err := op.start(d.file, code, data)
	if err == sys.ERROR_IO_PENDING {
		if w.Ended() || d.closed.Load() {
			d.cancelStarted(op)
		}
		err = op.wait(d.file)
	}
	if err == sys.ERROR_OPERATION_ABORTED && d.closed.Load() {
		return net.ErrClosed
	}
	return err
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
	err = d.run(op, codeRecv, buffer, w)
	op.memory.Unpin()
	switch err {
	case nil:
	case sys.ERROR_OPERATION_ABORTED, net.ErrClosed:
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

// objectMax is the greatest length of the data of a REFLECT event, in bytes.
const objectMax = 12288

// bufferSize is the buffer of a receive call for n items, in bytes. The first item always fits, however long; of the
// others as many as there is room for.
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
		err = d.run(op, codeSend, op.out.data, engine.Wait{})
		op.memory.Unpin()
		if err == nil {
			sent += op.out.count
			continue
		}
		if err == net.ErrClosed && (sent > 0 || last != nil) {
			err = fmt.Errorf("send: %w", net.ErrClosed) // an error that does not invite repeating the call
		}
		var ended bool
		var n int
		n, ended, last = op.out.refused(err, int(op.done))
		sent += n
		if ended {
			break
		}
	}
	return sent, last
}

// refused returns the number of packets sent by a failed request, whether sending more is useless, and the error for the
// caller. The driver reports only a number of bytes. All: it has gone through the batch and refused one or more packets,
// without saying which. None: it stopped at one packet, and some before it may be out (driver-2.2.2.md 1.4). In either
// case no packet is sent again.
func (o *outgoing) refused(err error, bytes int) (sent int, ended bool, told error) {
	switch err {
	case net.ErrClosed:
		return 0, true, err
	case sys.ERROR_NO_DATA, sys.ERROR_BAD_COMMAND, sys.ERROR_OPERATION_ABORTED, sys.ERROR_INVALID_HANDLE:
		return 0, true, wrap("send", err)
	}
	told = wrap("send", err)
	var e *Error
	if o.count > 1 && errors.As(told, &e) {
		e.detail = fmt.Sprintf("one or more of %d packets sent together were refused", o.count)
		if bytes == 0 {
			e.detail = fmt.Sprintf("the driver stopped at one of %d packets sent together; those before it may be out", o.count)
		}
	}
	if bytes == 0 {
		return 0, false, told
	}
	return o.count - 1, false, told
}

// control makes a call with the record that set fills in; data is its output buffer, which may be empty.
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
	err = d.run(op, code, data, engine.Wait{})
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

// start does the handshake and uploads the filter. From then on matching packets are captured.
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
	var e *Error
	if err == nil || errors.As(err, &e) || !errors.As(err, &number) {
		return err
	}
	return newError(op, number, "")
}

func newError(op string, number sys.Errno, detail string) *Error {
	return &Error{Op: op, Code: uint32(number), detail: detail, errno: number}
}
