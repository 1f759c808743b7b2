//go:build linux

package linux

import (
	"errors"
	"sync"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// lane is one of a handle's queues. The rules share out flows between the lanes, so that goroutines can
// work side by side and a flow still keeps its order.
type lane struct {
	index   uint8
	snap    int // bytes of each packet that the queue hands over at most, 0: all
	q       *queue.Queue
	waiting *outstanding // packets received from it and not sent on
	batches sync.Pool    // of *queue.Verdicts
	readers sync.Pool    // of *reader
	runs    runs
	owed    owed
	last    uint32 // number of the last packet, see pump.number
}

// maxLanes is how many queues a handle may have.
const maxLanes = 16

// reader is what one receive call at a time needs.
type reader struct {
	*batchReader
	drops *queue.Verdicts
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
func openLanes(h *handle) ([]*lane, error) {
	count := max(h.cfg.Queues, 1)
	limits := share(h.cfg.Limits, count)
	o := queueOptions(&h.cfg, limits)
	qs, err := queue.OpenGroup(count, o)
	if err != nil {
		return nil, err
	}
	var lanes []*lane
	for i, q := range qs {
		lanes = append(lanes, &lane{index: uint8(i), snap: o.Snap, q: q, waiting: newOutstanding(limits.Length)})
	}
	h.sender.lanes = lanes
	return lanes, nil
}

// configureLanes changes the limits of queues in use.
func configureLanes(lanes []*lane, cfg *engine.Config, l engine.Limits) (err error) {
	for _, lane := range lanes {
		err = errors.Join(err, closedError(lane.q.Configure(queueOptions(cfg, share(l, len(lanes))))))
	}
	return err
}

// closeLanes gives the queues back.
func closeLanes(lanes []*lane) (err error) {
	for _, l := range lanes {
		err = errors.Join(err, l.q.Close())
	}
	return err
}

// toQueues are the actions of rules that lead to lanes.
func toQueues(lanes []*lane) (as []rules.Action) {
	for _, l := range lanes {
		as = append(as, rules.ToQueue{Num: l.q.Num()})
	}
	return as
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
	return &reader{batchReader: newBatchReader(l.q, l.snap), drops: drops}, nil
}
