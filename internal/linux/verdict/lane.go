//go:build linux

package verdict

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// Lane is one of a handle's queues. The rules share out flows between the lanes, so that goroutines can
// work side by side and a flow still keeps its order.
//
// Each lane has a second queue on the same socket, which has a lane of its own in all but receiving. TCP goes to the first
// queue, whole, as the stack has it. All other packets go to the second, where the kernel cuts superpackets into packets of the
// network. One socket keeps the order between the two.
type Lane struct {
	Index   uint8
	single  *Lane // the lane of the second queue; nil if this is one
	q       *queue.Queue
	waiting *outstanding // packets received from it and not sent on
	batches sync.Pool    // of *queue.Verdicts
	readers sync.Pool    // of *reader
	runs    runs
	owed    owed
}

// MaxLanes is how many lanes a handle may have: two for each of its queues.
const MaxLanes = 2 * 16

// Of returns the lane of a message that was received from the socket of l.
func (l *Lane) Of(m *queue.Message) *Lane {
	if l.single != nil && m.Queue != l.q.Num() {
		return l.single
	}
	return l
}

// Number returns the lane's index among those of the sender.
func (l *Lane) Number() int { return int(l.Index) }

// QueueNumber returns the number of the lane's queue.
func (l *Lane) QueueNumber() uint16 { return l.q.Num() }

// Control calls a function with the descriptor of the lane's socket.
func (l *Lane) Control(f func(fd uintptr)) error { return l.q.Control(f) }

// SetBusyPoll makes receivers that find nothing look again for a time before they wait.
func (l *Lane) SetBusyPoll(d time.Duration) { l.q.SetBusyPoll(d) }

// Drain makes readers receive the waiting packets and then io.EOF.
func (l *Lane) Drain() { l.q.Drain() }

// Wake makes the readers that wait look whether their wait has ended.
func (l *Lane) Wake() { l.q.Wake() }

// Interrupt makes the readers that wait, and all later ones, fail.
func (l *Lane) Interrupt() { _ = l.q.SetReadDeadline(past) }

// past is a deadline that ends every wait, and allows no other.
var past = time.Unix(1, 0)

// Halves returns the lane of the first queue of a socket with that of its second one.
func (l *Lane) Halves() [2]*Lane { return [2]*Lane{l, l.single} }

// IsSingle reports whether this is the lane of a second queue.
func (l *Lane) IsSingle() bool { return l.single == nil }

// Alone reports whether no other receive call is under way, and every packet received before has its verdict.
func (l *Lane) Alone() bool { return l.runs.alone() && !l.owed.there.Load() }

// Begin notes the first number of a batch that was received alone, see runs.begin.
func (l *Lane) Begin(first uint32) { l.runs.begin(first) }

// Hold notes that a packet is handed out and waits for its verdict. If another had to give way, it is dropped.
func (l *Lane) Hold(drops *queue.Verdicts, id uint32) (gaveWay bool) {
	gone, gaveWay := l.waiting.put(id)
	if gaveWay {
		_ = drops.Add(gone, queue.Drop, queue.Option{})
		l.runs.settled(1)
	}
	return gaveWay
}

// Held notes how many packets of a batch were handed out.
func (l *Lane) Held(n int) { l.runs.received(n) }

// HoldAt is Hold for a packet whose address tells its place.
func (l *Lane) HoldAt(drops *queue.Verdicts, a *packet.Address, place uint32) (gaveWay bool) {
	t := tokenOf(a)
	t.place = place
	t.put(a)
	gone, gaveWay := l.waiting.putAt(place, t.id)
	if gaveWay {
		_ = drops.Add(gone, queue.Drop, queue.Option{})
	}
	return gaveWay
}

// LetGo undoes HoldAt, and reports whether the packet still had its place.
func (l *Lane) LetGo(a *packet.Address) bool {
	t := tokenOf(a)
	return l.waiting.claimAt(t.place, t.id)
}

// Waits returns how many packets were handed out and have no verdict.
func (l *Lane) Waits() uint64 { return l.waiting.count() }

// All returns the lanes and those of their second queues.
func All(lanes []*Lane) []*Lane {
	both := slices.Clone(lanes)
	for _, l := range lanes {
		both = append(both, l.single)
	}
	return both
}

// Reader has the buffers of one receive call at a time.
type Reader struct {
	*batchReader
	drops, singleDrops *queue.Verdicts // of the lane, and of that of its second queue
}

// DropsOf returns the verdicts for packets of a lane whose socket is read.
func (r *Reader) DropsOf(l *Lane) *queue.Verdicts {
	if l.single == nil {
		return r.singleDrops
	}
	return r.drops
}

// FlushBoth sends the verdicts of a reader of the lane, see flush.
func (l *Lane) FlushBoth(r *Reader) error {
	_, err := l.flush(r.drops)
	_, singleErr := l.single.flush(r.singleDrops)
	return errors.Join(err, singleErr)
}

// MaxBatch is how many packets a receive call takes at most.
const MaxBatch = 256

// queueOptions are the options of a queue that honours the limits, with room for as many packets again
// that were received and not sent on.
func queueOptions(cfg *engine.Config, l engine.Limits) queue.Options {
	return queue.Options{Snap: cfg.Snap, MaxLen: uint32(2 * l.Length), FailOpen: cfg.FailOpen, RcvBuf: ReceiveBuffer(l)}
}

// ReceiveBuffer is the socket buffer for a queue of the given size, in bytes. The kernel counts the memory
// behind a packet, which is about twice its bytes for large ones and some 1 KiB for small ones.
func ReceiveBuffer(l engine.Limits) int { return 2*l.Size + 1024*l.Length }

// share divides limits between lanes.
func share(l engine.Limits, lanes int) engine.Limits {
	l.Length = max(l.Length/lanes, 1)
	l.Size = max(l.Size/lanes, packet.IPv6HeaderLen+0xffff)
	return l
}

// Open binds a handle's queues. Each has places for room packets that wait for their verdict; 0 stands for as many as the limits
// say. The sender answers to the queues from now on.
func (s *Sender) Open(cfg *engine.Config, room int) ([]*Lane, error) {
	count := max(cfg.Queues, 1)
	limits := share(cfg.Limits, count)
	o := queueOptions(cfg, limits)
	if room == 0 {
		room = limits.Length
	}
	pairs, err := queue.OpenPairs(count, o)
	if err != nil {
		return nil, err
	}
	var lanes []*Lane
	for i, p := range pairs {
		lanes = append(lanes, NewLane(p, i, count, room))
	}
	s.Answer(lanes)
	return lanes, nil
}

// NewLane returns a lane, the i-th of count, of two queues on one socket.
func NewLane(p queue.Pair, i, count, room int) *Lane {
	return &Lane{
		Index: uint8(i), q: p.Whole, waiting: newOutstanding(room),
		single: &Lane{Index: uint8(count + i), q: p.Single, waiting: newOutstanding(room)},
	}
}

// Answer makes the sender answer to lanes.
func (s *Sender) Answer(lanes []*Lane) { s.lanes = All(lanes) }

// ConfigureLanes changes the limits of queues in use.
func ConfigureLanes(lanes []*Lane, cfg *engine.Config, l engine.Limits) (err error) {
	for _, lane := range All(lanes) {
		err = errors.Join(err, ClosedError(lane.q.Configure(queueOptions(cfg, share(l, len(lanes))))))
	}
	return err
}

// Cut makes the kernel cut superpackets before they come to the sender's queues, see queue.Queue.Cut.
func (s *Sender) Cut() (err error) {
	for _, l := range s.lanes {
		err = errors.Join(err, ClosedError(l.q.Cut()))
	}
	return err
}

// CloseLanes gives the queues back. Packets that were received and not sent on are dropped first: the kernel would drop them some time
// after the queue is gone, when the rules may be gone too, and older kernels (6.1) then warn in their log.
func CloseLanes(lanes []*Lane) (err error) {
	for _, l := range All(lanes) {
		l.dropOutstanding()
	}
	for _, l := range lanes {
		err = errors.Join(err, l.q.Close())
	}
	return err
}

// dropOutstanding drops the packets that were received and not sent on.
func (l *Lane) dropOutstanding() {
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

// batch returns an empty batch of verdicts; it goes back with l.batches.Put.
func (l *Lane) batch() (*queue.Verdicts, error) {
	if v, ok := l.batches.Get().(*queue.Verdicts); ok {
		return v, nil
	}
	return l.q.NewVerdicts()
}

// Enter returns a reader for a receive call, which ends with Leave.
func (l *Lane) Enter() (*Reader, error) {
	r, err := l.Reader()
	if err == nil {
		l.runs.enter()
		l.single.runs.enter()
	}
	return r, err
}

// Leave ends a receive call.
func (l *Lane) Leave(r *Reader) {
	l.runs.leave()
	l.single.runs.leave()
	l.readers.Put(r)
}

// Reader returns a reader; it goes back with l.readers.Put.
func (l *Lane) Reader() (*Reader, error) {
	if r, ok := l.readers.Get().(*Reader); ok {
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
	return &Reader{batchReader: newBatchReader(l.q), drops: drops, singleDrops: singleDrops}, nil
}

// ClosedError turns every error of a closed socket into net.ErrClosed.
func ClosedError(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// MaxPlaces is how many places the longest queue needs.
const MaxPlaces = 1 << 15
