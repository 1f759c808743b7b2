package divert

import (
	"fmt"
	"time"

	"github.com/opendivert/divert/internal/engine"
)

// WithQueueLength limits the number of packets or events in the handle's queue: 32 to 16384, instead of 4096.
func WithQueueLength(n int) Option { return func(o *options) { o.config.Limits.Length = n } }

// WithQueueTime limits how long a packet waits in the handle's queue: 100 ms to 16 s in whole milliseconds, instead of 2
// s.
func WithQueueTime(d time.Duration) Option { return func(o *options) { o.config.Limits.Time = d } }

// WithQueueSize limits the bytes in the handle's queue: 65535 to 33554432, instead of 4194304.
func WithQueueSize(n int) Option { return func(o *options) { o.config.Limits.Size = n } }

// SetQueueLength changes the limit of WithQueueLength. It fails with ErrInvalid for a value out of range, and with
// net.ErrClosed.
func (h *Handle) SetQueueLength(n int) error {
	return h.setLimits("set queue length", func(l *engine.Limits) { l.Length = n })
}

// SetQueueTime changes the limit of WithQueueTime. It fails with ErrInvalid for a value out of range or with a part of a
// millisecond, and with net.ErrClosed.
func (h *Handle) SetQueueTime(d time.Duration) error {
	return h.setLimits("set queue time", func(l *engine.Limits) { l.Time = d })
}

// SetQueueSize changes the limit of WithQueueSize. It fails with ErrInvalid for a value out of range, and with
// net.ErrClosed.
func (h *Handle) SetQueueSize(n int) error {
	return h.setLimits("set queue size", func(l *engine.Limits) { l.Size = n })
}

// QueueLength returns how many packets or events may wait in the handle's queue.
func (h *Handle) QueueLength() int { return h.getLimits().Length }

// QueueTime returns how long a packet may wait in the handle's queue.
func (h *Handle) QueueTime() time.Duration { return h.getLimits().Time }

// QueueSize returns how many bytes may wait in the handle's queue.
func (h *Handle) QueueSize() int { return h.getLimits().Size }

func (h *Handle) getLimits() engine.Limits {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.limits
}

func (h *Handle) setLimits(op string, set func(*engine.Limits)) error {
	if h.engine == nil {
		return opError(op, errUnopened)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	limits := h.limits
	set(&limits)
	err := checkLimits(&limits)
	if err == nil {
		err = h.platform().SetLimits(limits)
	}
	if err == nil {
		h.limits = limits
	}
	return opError(op, err)
}

// The default, least and greatest limits of a queue (specification: api.md 11).
var (
	defaultLimits  = engine.Limits{Length: 4096, Time: 2 * time.Second, Size: 4194304}
	leastLimits    = engine.Limits{Length: 32, Time: 100 * time.Millisecond, Size: 65535}
	greatestLimits = engine.Limits{Length: 16384, Time: 16 * time.Second, Size: 33554432}
)

// checkLimits returns why a queue cannot have the limits.
func checkLimits(l *engine.Limits) error {
	least, greatest := &leastLimits, &greatestLimits
	switch {
	case l.Length < least.Length || l.Length > greatest.Length:
		return fmt.Errorf("%w: queue length %d is out of range (%d to %d packets)", ErrInvalid, l.Length, least.Length, greatest.Length)
	case l.Time < least.Time || l.Time > greatest.Time:
		return fmt.Errorf("%w: queue time %v is out of range (%v to %v)", ErrInvalid, l.Time, least.Time, greatest.Time)
	case l.Time%time.Millisecond != 0: // the Windows driver counts whole milliseconds, and silent rounding would mislead
		return fmt.Errorf("%w: queue time %v is not a whole number of milliseconds; round it", ErrInvalid, l.Time)
	case l.Size < least.Size || l.Size > greatest.Size:
		return fmt.Errorf("%w: queue size %d is out of range (%d to %d bytes)", ErrInvalid, l.Size, least.Size, greatest.Size)
	}
	return nil
}

// Version returns the version of WinDivert whose behaviour handles follow, 2.2.
func Version() (major, minor int) { return 2, 2 }
