package windows

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// fakeStack is a network stack with handles of a driver, which capture by their uploaded filters.
type fakeStack struct {
	t testing.TB

	mu      sync.Mutex
	drivers []*fakeDriver // the newest last
	passed  []packet.Packet
	loop    bool // sent packets are captured again, else they pass
	opened  int
}

// fakeDriver is a handle in a fakeStack.
type fakeDriver struct {
	stack  *fakeStack
	plan   *plan
	filter *prog.Program // read back from the upload

	// guarded by stack.mu
	changed *sync.Cond
	queue   []packet.Packet
	params  map[uint32]uint64
	down    engine.How
	closed  bool
}

func newStack(t testing.TB) *fakeStack { return &fakeStack{t: t} }

// open is an opener.
func (s *fakeStack) open(_ int16, pl *plan) (driver, error) {
	p, err := prog.ParseInstructions(pl.instructions, pl.program.Layer())
	if err != nil {
		return nil, err
	}
	if err := p.DriverCheck(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := &fakeDriver{stack: s, plan: pl, filter: p, params: make(map[uint32]uint64)}
	d.changed = sync.NewCond(&s.mu)
	s.drivers = append(s.drivers, d)
	s.opened++
	return d, nil
}

// handle opens a handle in the stack.
func (s *fakeStack) handle(text string, layer packet.Layer, cfg engine.Config) *client {
	s.t.Helper()
	p, err := progtest.Compile(text, layer, filter.Extended)
	if err != nil {
		s.t.Fatal(err)
	}
	cfg.Program = p
	if cfg.Limits == (engine.Limits{}) {
		cfg.Limits = defaults
	}
	h, err := newHandle(cfg, s.open)
	if err != nil {
		s.t.Fatal(err)
	}
	return newClient(s.t, h)
}

// capture sends a packet through the stack.
func (s *fakeStack) capture(p packet.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run(p)
}

func (s *fakeStack) run(p packet.Packet) {
	p.Data = bytes.Clone(p.Data)
	for i := len(s.drivers) - 1; i >= 0; i-- {
		d := s.drivers[i]
		if d.closed || d.down&engine.ShutdownRecv != 0 || d.plan.hints == 0 || !d.filter.MatchExact(p.Data, &p.Addr) {
			continue
		}
		d.queue = append(d.queue, p)
		d.changed.Signal()
		if d.plan.flags&engine.FlagSniff == 0 {
			return
		}
	}
	s.passed = append(s.passed, p)
}

// numPassed returns the number of packets that no handle has kept.
func (s *fakeStack) numPassed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.passed)
}

// numOpen returns the number of the drivers' open handles.
func (s *fakeStack) numOpen() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.drivers {
		if !d.closed {
			n++
		}
	}
	return n
}

func (d *fakeDriver) receive(w engine.Wait, ps []packet.Packet, _ packet.Layer) (int, error) {
	d.stack.mu.Lock()
	defer d.stack.mu.Unlock()
	for {
		switch {
		case d.closed:
			return 0, net.ErrClosed
		case w.Ended():
			return 0, engine.ErrInterrupted
		case len(d.queue) > 0:
			n := min(len(ps), len(d.queue), 7)
			for i, p := range d.queue[:n] {
				ps[i].Data = ps[i].Buffer(len(p.Data))[:len(p.Data)]
				copy(ps[i].Data, p.Data)
				ps[i].Addr = p.Addr
			}
			d.queue = d.queue[n:]
			return n, nil
		case d.down&engine.ShutdownRecv != 0:
			return 0, io.EOF
		}
		d.changed.Wait()
	}
}

func (d *fakeDriver) interrupt() {
	d.stack.mu.Lock()
	defer d.stack.mu.Unlock()
	d.changed.Broadcast()
}

func (d *fakeDriver) send(ps []packet.Packet) (int, error) {
	d.stack.mu.Lock()
	defer d.stack.mu.Unlock()
	if d.closed {
		return 0, net.ErrClosed
	}
	if d.down&engine.ShutdownSend != 0 || d.plan.flags&engine.FlagRecvOnly != 0 {
		d.stack.t.Errorf("the driver refuses to send")
		return 0, engine.ErrShutdown
	}
	n, last := 0, error(nil)
	for _, p := range ps {
		if _, err := engine.Whole(p.Data); err != nil {
			last = err
			continue
		}
		n++
		if d.stack.loop {
			d.stack.run(p)
		} else {
			p.Data = bytes.Clone(p.Data)
			d.stack.passed = append(d.stack.passed, p)
		}
	}
	return n, last
}

func (d *fakeDriver) setParam(param uint32, value uint64) error {
	d.stack.mu.Lock()
	defer d.stack.mu.Unlock()
	d.params[param] = value
	return nil
}

func (d *fakeDriver) getParam(param uint32) (uint64, error) {
	d.stack.mu.Lock()
	defer d.stack.mu.Unlock()
	return d.params[param], nil
}

func (d *fakeDriver) shutdown(how engine.How) error {
	d.stack.mu.Lock()
	defer d.stack.mu.Unlock()
	d.down |= how
	d.changed.Broadcast()
	return nil
}

func (d *fakeDriver) close() error {
	d.stack.mu.Lock()
	defer d.stack.mu.Unlock()
	if d.closed {
		return net.ErrClosed
	}
	d.closed = true
	if d.plan.flags&engine.FlagSniff == 0 {
		d.stack.passed = append(d.stack.passed, d.queue...)
	}
	d.changed.Broadcast()
	return nil
}

func (d *fakeDriver) describe() string { return "fake driver" }

// recvAll ends receiving and returns the packets captured until then.
func recvAll(t testing.TB, h *client) (all []packet.Packet) {
	t.Helper()
	if err := h.Shutdown(engine.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	for {
		ps := make([]packet.Packet, 5)
		n, err := h.Recv(ps)
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			return all
		}
		all = append(all, ps[:n]...)
	}
}
