package windows

import (
	"runtime"
	"unsafe"

	sys "golang.org/x/sys/windows"

	"github.com/opendivert/divert/packet"
)

// operation is the memory of one request to the driver. The system writes to it until the request completes, so it is
// pinned as long as it exists, and every call waits for the completion before it gives the operation back.
type operation struct {
	overlapped sys.Overlapped
	record     record
	length     uint32 // RECV: size of the address array, in bytes
	done       uint32 // bytes transferred
	addresses  [batchMax * packet.AddressSize]byte

	// The device's lock guards these.
	receives  bool // used by a receive call
	cancelled bool // cancelled while under way

	out    outgoing       // SEND
	memory runtime.Pinner // of the buffers of the present request
	self   runtime.Pinner
}

func newOperation() (*operation, error) {
	event, err := sys.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return nil, wrap("create an event", err)
	}
	op := &operation{}
	op.overlapped.HEvent = event
	op.self.Pin(op)
	return op, nil
}

func (op *operation) close() {
	_ = sys.CloseHandle(op.overlapped.HEvent) // fails only for invalid handles
	op.self.Unpin()
}

// start issues a request with the operation's record. It may be pending: then wait must follow.
// The driver reads or writes the data, which must be pinned.
func (op *operation) start(file sys.Handle, code uint32, data []byte) error {
	op.done = 0
	return sys.DeviceIoControl(file, code, (*byte)(unsafe.Pointer(&op.record)), uint32(len(op.record)),
		unsafe.SliceData(data), uint32(len(data)), &op.done, &op.overlapped)
}

// wait waits until a pending request completes, and returns its error.
func (op *operation) wait(file sys.Handle) error {
	return sys.GetOverlappedResult(file, &op.overlapped, &op.done, true)
}

// cancel cancels a request that is under way, once. It does not find one that has not begun; the beginner of that checks
// its stop flag. The caller holds the device's lock.
func (op *operation) cancel(file sys.Handle) {
	if !op.cancelled && sys.CancelIoEx(file, &op.overlapped) == nil {
		op.cancelled = true
	}
}
