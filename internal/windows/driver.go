package windows

import (
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// driver is a handle of the driver. A handle of this package has one, and for a moment a second while its filter is
// exchanged. All methods may be called from several goroutines; after close they fail with net.ErrClosed.
type driver interface {
	// receive waits for items and fills 1 to len(ps) of ps, which is not empty. It fails with io.EOF when
	// receiving is shut down and nothing is left, and with engine.ErrInterrupted if w has ended or interrupt was called.
	receive(w engine.Wait, ps []packet.Packet, layer packet.Layer) (int, error)
	// interrupt makes waiting receive calls return. Its caller first ends their Wait.
	interrupt()
	// send injects packets; see engine.Handle.
	send(ps []packet.Packet) (int, error)
	setParam(param uint32, value uint64) error
	getParam(param uint32) (uint64, error)
	shutdown(how engine.How) error
	close() error
	// describe names the driver and its version.
	describe() string
}
