//go:build linux

package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/life"
	"github.com/opendivert/divert/internal/linux/review"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Open makes the source that a handle's flags and mode ask for. The note says how its packets come, where that is not
// as the decider's description has it.
func Open(e Env, mode engine.Mode, decider string) (s Source, note string, err error) {
	switch {
	case e.Config.Flags&engine.FlagSniff != 0:
		// A program knows the interface that a forwarded packet came in on, the log also the one it leaves by.
		if mode == engine.ModeKernel && e.Layer == packet.LayerNetwork {
			s, err := newCopies(e)
			if !errors.Is(err, os.ErrPermission) {
				return made(s, err)
			}
			// Perf buffers need a right more than programs do (CAP_PERFMON).
			note = fmt.Sprintf(", copies come through the packet log: %v", err)
		}
		if e.Config.Segments {
			return nil, "", fmt.Errorf("%w: segments of TCP in copies that come through the packet log (%s)", engine.ErrNotSupported, decider+note)
		}
		l, whole, err := newLogged(e, mode == engine.ModeInterpret)
		s, _, err := made(l, err)
		return s, note + whole, err
	case mode == engine.ModeInterpret:
		return made(newPump(e))
	case e.Config.Flags&engine.FlagDrop != 0:
		return made(newSink(e))
	}
	return made(newQueued(e))
}

// made returns a source, without a note, or nil, which a source that is a nil pointer is not.
func made[S Source](s S, err error) (Source, string, error) {
	if err != nil {
		return nil, "", err
	}
	return s, "", nil
}

// Source is where a handle's packets come from. It asks nothing of the handle but what Env has.
type Source interface {
	// Wants returns the source's demands on rules and programs, always the same.
	Wants() Wants
	// Recv is engine.Handle's Recv, and Wake its Wake.
	Recv(w engine.Wait, ps []packet.Packet) (int, error)
	Wake()
	// Queues is engine.Queues' Queues, RecvQueue its RecvQueue, and QueueOf its QueueOf.
	Queues() int
	RecvQueue(queue int, w engine.Wait, ps []packet.Packet) (int, error)
	QueueOf(p *packet.Packet) int
	SetLimits(l engine.Limits) error
	SetFilter(p *prog.Program)
	// LastNumbers returns the last number that each queue has given a packet, in the order of the lanes. Only of a source
	// whose packets wait in queues.
	LastNumbers() ([]uint32, error)
	// Tally adds the counts that only the source knows. Those of user space and Matched are filled in.
	Tally(*engine.Stats) error
	// Drain makes Recv return the waiting packets and then io.EOF. The rules are gone when it is called.
	Drain()
	// Yield lets waiting packets go on, while the rules still stand. Nobody receives any more.
	Yield() error
	// Finish decides on packets that still wait in queues, if nobody else will. The rules are gone, and nobody receives.
	Finish() error
	// Close gives packets that nobody received back to the stack and ends.
	Close() error
}

// Wants are a source's demands on rules and programs.
type Wants struct {
	Ways   []Way           // that lead packets to it
	Copies *codegen.Outlet // where programs copy packets to; nil: they do not
	Counts *codegen.Outlet // where programs count the segments that they drop; nil: they do not
	Cutter rules.Action    // cuts superpackets of UDP before any rule leads them to the source; nil: nobody does
	Queued bool            // programs choose the packets for its queues
}

// Env is the part of its handle that a source needs.
type Env struct {
	Config      engine.Config // a copy: a source may change its own
	Layer       packet.Layer
	Counts      *tally.Counts
	Life        *life.Life
	Sender      *verdict.Sender
	Review      *review.Review
	Table       *engine.FlowTable         // the verdicts and counts of flows where the interpreter decides
	FlowDropped func(*packet.Packet) bool // the flow of a single packet that programs could not decide on is dropped
	Matched     func() (uint64, error)    // the rules' count
}

// oneQueue has the methods of sources with a single queue.
type oneQueue struct{}

func (oneQueue) Queues() int                    { return 1 }
func (oneQueue) QueueOf(*packet.Packet) int     { return 0 }
func (oneQueue) LastNumbers() ([]uint32, error) { return nil, nil }

// Way says what a rule does with which packets.
type Way struct {
	Take   codegen.Take
	Action rules.Action
	Share  rules.Share // of the flows
}

// mayMatchCounted is mayMatch where the interpreter decides: it also counts packets for filters that count flows.
func (e *Env) mayMatchCounted(f *prog.Program, b []byte, length int, a *packet.Address, at int64) bool {
	if e.Table.Idle(f) {
		return review.MayMatch(f, b, length, a)
	}
	var parsed packet.Parsed
	if !parsed.Parse(b) {
		return false
	}
	f, k := e.Table.Known(&e.Config, f, b, &parsed, length, at)
	return review.MayMatchKnown(f, b, length, a, k)
}

// transient reports whether a goroutine that serves a queue goes on after its receive call has failed: all but the end of the
// queue is transient, as packets would wait for nobody otherwise. It returns after a moment, so that an error which stays does
// not take a processor.
func transient(err error) bool {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, engine.ErrInterrupted) {
		return false
	}
	time.Sleep(5 * time.Millisecond)
	return true
}
