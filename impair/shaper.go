package impair

import "time"

// shaper is a token bucket with a queue before it. It does not hold packets: it computes when each leaves, as soon as it
// comes.
type shaper struct {
	rate  int64 // bits a second
	burst int64 // bytes
	limit Limit

	full int64 // time at which the bucket will be full
	rest int64 // fraction missing from full, in nanoseconds divided by rate
	last int64 // time at which the last packet leaves

	queue []queued // packets that have not left, from first on
	first int
	bytes int // bytes of these packets
}

type queued struct {
	leaves int64
	bytes  int
}

func newShaper(r *Rule) *shaper {
	s := &shaper{rate: r.Rate, burst: int64(r.Burst), limit: r.Queue}
	if s.burst == 0 {
		s.burst = defaultBurst
	}
	if s.limit == (Limit{}) {
		s.limit.Packets = defaultQueue
	}
	return s
}

// add returns the time at which a packet that comes now leaves, and false if the queue has no room for it. Times are
// nanoseconds and do not go back. A packet longer than the burst leaves when the bucket is full, and overdraws it.
func (s *shaper) add(now int64, bytes int) (leaves int64, ok bool) {
	s.clear(now)
	leaves = max(now, s.last, s.full-s.took(max(s.burst-int64(bytes), 0)))
	if leaves > now {
		l := &s.limit
		if l.Packets > 0 && len(s.queue)-s.first >= l.Packets || l.Bytes > 0 && s.bytes+bytes > l.Bytes ||
			l.Time > 0 && leaves-now > int64(l.Time) {
			return 0, false
		}
		s.queue = append(s.queue, queued{leaves, bytes})
		s.bytes += bytes
	}
	if leaves > s.full {
		s.full, s.rest = leaves, 0
	}
	cost := int64(bytes)*8*int64(time.Second) + s.rest
	s.full += cost / s.rate
	s.rest = cost % s.rate
	s.last = leaves
	return leaves, true
}

// took returns the nanoseconds for a number of bytes, rounded down.
func (s *shaper) took(bytes int64) int64 {
	const whole = 1 << 26 // bytes whose bits fit 64 bits in nanoseconds
	if bytes < whole {
		return bytes * 8 * int64(time.Second) / s.rate
	}
	return int64(float64(bytes) * 8 * float64(time.Second) / float64(s.rate))
}

// clear forgets packets that have left.
func (s *shaper) clear(now int64) {
	for s.first < len(s.queue) && s.queue[s.first].leaves <= now {
		s.bytes -= s.queue[s.first].bytes
		s.first++
	}
	switch {
	case s.first == len(s.queue):
		s.queue, s.first = s.queue[:0], 0
	case s.first >= 1024 && 2*s.first >= len(s.queue):
		s.queue = s.queue[:copy(s.queue, s.queue[s.first:])]
		s.first = 0
	}
}
