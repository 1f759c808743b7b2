package windows

import (
	"testing"
	"time"

	"github.com/opendivert/divert/packet"
)

// Model is the test driver, for tests of handles at the level of programs.
type Model struct{ f *fixture }

// LoadModel starts the test driver if necessary, and makes it keep packets that leave the stack.
func LoadModel(t testing.TB) *Model {
	t.Helper()
	f := load(t)
	f.mode(modeKeep)
	return &Model{f}
}

// Path returns the path of the driver's file.
func (m *Model) Path() string { return testDriver(m.f.t) }

// Bring makes packets or events arrive from the network.
func (m *Model) Bring(ps ...packet.Packet) {
	m.f.t.Helper()
	for _, p := range ps {
		m.f.queue(p)
	}
}

// Left returns the packets that have left the stack since the last call.
func (m *Model) Left() []packet.Packet { return m.f.left() }

// Pass lets time pass in the driver.
func (m *Model) Pass(d time.Duration) { m.f.pass(d) }

// Closed waits until the driver has no handles.
func (m *Model) Closed() {
	m.f.t.Helper()
	m.f.eventually("all handles are closed", func(c census) bool { return c.contexts == 0 })
}

// Numbered returns a packet with a number and long more bytes; Number the number of an intact one.
func Numbered(n, long int) packet.Packet { return numbered(n, long) }

// Number returns the number of a numbered packet, and whether it is intact.
func Number(p *packet.Packet) (int, error) { return numberIn(p) }
