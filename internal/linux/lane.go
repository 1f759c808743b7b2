//go:build linux

package linux

import (
	"errors"
	"slices"
	"sync"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// lane is one of a handle's queues. The rules share out flows between the lanes, so that goroutines can
// work side by side and a flow still keeps its order.
//
// Each lane has a second queue on the same socket, a lane of its own but for receiving: TCP comes whole, as the stack has
// it, and goes to the first; of all else each packet is one of the network, so it goes to the second, where the kernel
// cuts what is to be cut. One socket keeps the order between them.
type lane struct {
	index   uint8
	single  *lane // the lane of the second queue; nil if this is one
	q       *queue.Queue
	waiting *outstanding // packets received from it and not sent on
	batches sync.Pool    // of *queue.Verdicts
	readers sync.Pool    // of *reader
	runs    runs
	owed    owed
	last    uint32 // number of the last packet, see pump.number
}

// maxLanes is how many lanes a handle may have: two for each of its queues.
const maxLanes = 2 * 16

// of returns the lane of a message that was received from the socket of l.
func (l *lane) of(m *queue.Message) *lane {
	if l.single != nil && m.Queue != l.q.Num() {
		return l.single
	}
	return l
}

// enter and leave count a receive call.
func (l *lane) enter() { l.runs.enter(); l.single.runs.enter() }
func (l *lane) leave() { l.runs.leave(); l.single.runs.leave() }

// all returns the lanes and those of their second queues.
func all(lanes []*lane) []*lane {
	both := slices.Clone(lanes)
	for _, l := range lanes {
		both = append(both, l.single)
	}
	return both
}

// reader is what one receive call at a time needs.
type reader struct {
	*batchReader
	drops, singleDrops *queue.Verdicts // of the lane, and of that of its second queue
}

// dropsOf returns the verdicts for packets of a lane whose socket is read.
func (r *reader) dropsOf(l *lane) *queue.Verdicts {
	if l.single == nil {
		return r.singleDrops
	}
	return r.drops
}

// flushBoth sends the verdicts of a reader of the lane, see flush.
func (l *lane) flushBoth(r *reader) error {
	_, err := l.flush(r.drops)
	_, singleErr := l.single.flush(r.singleDrops)
	return errors.Join(err, singleErr)
}

// maxBatch is how many packets a receive call takes at most.
const maxBatch = 256

// queueOptions are the options of a queue that honours the limits, with room for as many packets again
// that were received and not sent on.
func queueOptions(cfg *engine.Config, l engine.Limits) queue.Options {
	return queue.Options{Snap: cfg.Snap, MaxLen: uint32(2 * l.Length), FailOpen: cfg.FailOpen, RcvBuf: receiveBuffer(l)}
}

// receiveBuffer is the socket buffer for a queue of the given size, in bytes. The kernel counts the memory
// behind a packet, which is about twice its bytes for large ones and some 1 KiB for small ones.
func receiveBuffer(l engine.Limits) int { return 2*l.Size + 1024*l.Length }

// share divides limits between lanes.
func share(l engine.Limits, lanes int) engine.Limits {
	l.Length = max(l.Length/lanes, 1)
	l.Size = max(l.Size/lanes, packet.IPv6HeaderLen+0xffff)
	return l
}

// openLanes binds a handle's queues and makes its sender answer to them.
func openLanes(s *sender, cfg *engine.Config) ([]*lane, error) {
	count := max(cfg.Queues, 1)
	limits := share(cfg.Limits, count)
	o := queueOptions(cfg, limits)
	pairs, err := queue.OpenPairs(count, o)
	if err != nil {
		return nil, err
	}
	var lanes []*lane
	for i, p := range pairs {
		lanes = append(lanes, &lane{
			index: uint8(i), q: p.Whole, waiting: newOutstanding(limits.Length),
			single: &lane{index: uint8(count + i), q: p.Single, waiting: newOutstanding(limits.Length)},
		})
	}
	s.lanes = all(lanes)
	return lanes, nil
}

// configureLanes changes the limits of queues in use.
func configureLanes(lanes []*lane, cfg *engine.Config, l engine.Limits) (err error) {
	for _, lane := range all(lanes) {
		err = errors.Join(err, closedError(lane.q.Configure(queueOptions(cfg, share(l, len(lanes))))))
	}
	return err
}

// closeLanes gives the queues back. What was received and not sent on is dropped before: the kernel would drop it some time
// after the queue is gone, when the rules may be gone too, and older kernels (6.1) then warn in their log.
func closeLanes(lanes []*lane) (err error) {
	for _, l := range all(lanes) {
		l.dropOutstanding()
	}
	for _, l := range lanes {
		err = errors.Join(err, l.q.Close())
	}
	return err
}

// dropOutstanding drops what was received and not sent on.
func (l *lane) dropOutstanding() {
	var v *queue.Verdicts
	l.waiting.takeAll(func(id uint32) {
		if v == nil {
			v, _ = l.batch() // fails if the queue is closed
		}
		if v != nil {
			_ = v.Add(id, queue.Drop, queue.Option{}) // fails only for a payload
		}
	})
	if v != nil {
		_, _ = l.flush(v) // what fails goes with the queue
		l.batches.Put(v)
	}
}

// toQueues are the ways of packets to lanes. With segments everything goes to the second queues.
func toQueues(lanes []*lane, segments bool) (ways []way) {
	for i, l := range lanes {
		share := rules.Share{Index: uint32(i), Of: uint32(len(lanes))}
		if !segments {
			ways = append(ways, way{codegen.TakeStreams, rules.ToQueue{Num: l.q.Num()}, share})
		}
		if !finishesSCTP() {
			ways = append(ways, way{codegen.TakeWhole, rules.ToQueue{Num: l.q.Num()}, share})
		}
		ways = append(ways, way{codegen.TakeRest, rules.ToQueue{Num: l.single.q.Num()}, share})
	}
	return ways
}

// batch returns an empty batch of verdicts; it goes back with l.batches.Put.
func (l *lane) batch() (*queue.Verdicts, error) {
	if v, ok := l.batches.Get().(*queue.Verdicts); ok {
		return v, nil
	}
	return l.q.NewVerdicts()
}

// reader returns a reader; it goes back with l.readers.Put.
func (l *lane) reader() (*reader, error) {
	if r, ok := l.readers.Get().(*reader); ok {
		return r, nil
	}
	drops, err := l.q.NewVerdicts()
	if err != nil {
		return nil, err
	}
	singleDrops, err := l.single.q.NewVerdicts()
	if err != nil {
		return nil, err
	}
	return &reader{batchReader: newBatchReader(l.q), drops: drops, singleDrops: singleDrops}, nil
}
