package impair

import (
	"fmt"
	"math"
	"time"
)

// Direction is a direction of packets.
type Direction uint8

// The directions. A packet of the host to itself counts as outbound only.
const (
	Both Direction = iota
	Out
	In
)

// directionNames are the directions in text.
var directionNames = []string{Both: "both", Out: "out", In: "in"}

// String returns the direction's name.
func (d Direction) String() string { return nameOf(directionNames, int(d)) }

// Distribution is a distribution of jitter.
type Distribution uint8

// The distributions, with a lag L and a jitter J. No delay is below 0.
const (
	Uniform     Distribution = iota // from L-J to L+J
	Normal                          // around L, with J as the standard deviation
	Exponential                     // L plus a random delay with the mean J
	Pareto                          // the same with a long tail: one in a hundred gets more than 7 J, one in a thousand more than 18 J
)

// distributionNames are the distributions in text.
var distributionNames = []string{Uniform: "uniform", Normal: "normal", Exponential: "exponential", Pareto: "pareto"}

// String returns the distribution's name.
func (d Distribution) String() string { return nameOf(distributionNames, int(d)) }

func nameOf(names []string, i int) string {
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprint(i)
}

// Limit bounds the queue before a Rate. A packet that would exceed a bound is dropped. A bound of 0 is no bound, but with
// all of them 0 the limit is 1,000 packets.
type Limit struct {
	Packets int
	Bytes   int           // of IP packets
	Time    time.Duration // longest wait of a packet
}

// Rule selects packets and impairs them. Zero fields do nothing. A packet meets the impairments in the order of the
// fields: a lost packet takes no part of the rate, and a packet that has waited for the rate is delayed by the whole lag.
type Rule struct {
	Filter    string // in the filter language; empty: all packets
	Direction Direction

	// Loss is the share of packets that are lost, 0 to 1. With a LossRun of 1 or more they are lost in runs of that mean
	// length (the model of Gilbert and Elliott, with all packets lost in its bad state); with 0 each packet is lost
	// independently of the others. The sender never learns of it.
	Loss    float64
	LossRun float64

	// Reset is the share of TCP segments that are replaced by a reset to both ends.
	Reset float64

	// Corrupt is the share of packets with one flipped bit, anywhere behind the IP headers. Checksums stay unchanged, so
	// the receiver sees that the packet is damaged.
	Corrupt float64

	// Duplicate is the share of packets that are sent twice. The second is delayed separately and takes its own part of
	// the rate.
	Duplicate float64

	// Rate limits the bits of IP packets that go on in a second: at LayerNetwork for each direction, at LayerForward for
	// each outgoing interface. Up to Burst bytes, by default 1,500, may go on at once after a pause.
	Rate  int64
	Burst int
	Queue Limit

	// Lag delays each packet, and Jitter varies the delay. The packets of a flow keep their order unless Unordered is
	// set: a packet waits for those before it.
	Lag          time.Duration
	Jitter       time.Duration
	Distribution Distribution
	Unordered    bool

	// Throttle lets packets go on only at each multiple of this time since the run began, all waiting ones together.
	Throttle time.Duration

	// Reorder is the share of packets that go on behind the next ReorderBy packets of their flow, by default 1, or after
	// ReorderWait, by default 100 ms, if these do not come.
	Reorder     float64
	ReorderBy   int
	ReorderWait time.Duration

	place place // of the rule in its file
}

// The limits and defaults of rules.
const (
	maxDelay  = time.Hour
	minTime   = time.Microsecond
	minRate   = 8 // bits a second: a byte
	maxRate   = int64(1e12)
	maxBytes  = 1 << 40
	maxRun    = 1e6
	maxBehind = 1000

	defaultBurst       = 1500
	defaultQueue       = 1000
	defaultReorderWait = 100 * time.Millisecond
)

// A SettingError is an error in one setting of a rule.
type SettingError struct {
	Setting string // its name in Settings
	Err     error
}

// Error returns the setting's name and the error.
func (e *SettingError) Error() string { return e.Setting + ": " + e.Err.Error() }

// Unwrap returns the error without the name.
func (e *SettingError) Unwrap() error { return e.Err }

func settingErrorf(setting, format string, args ...any) error {
	return &SettingError{setting, fmt.Errorf(format, args...)}
}

// check returns a *SettingError for the first setting that is out of range or means nothing without another.
func (r *Rule) check() error {
	for _, s := range [...]struct {
		name  string
		share float64
	}{{"loss", r.Loss}, {"reset", r.Reset}, {"corrupt", r.Corrupt}, {"duplicate", r.Duplicate}, {"reorder", r.Reorder}} {
		if !(s.share >= 0 && s.share <= 1) {
			return settingErrorf(s.name, "%v%% is out of range (0%% to 100%%)", s.share*100)
		}
	}
	for _, s := range [...]struct {
		name string
		time time.Duration
	}{{"lag", r.Lag}, {"jitter", r.Jitter}, {"throttle", r.Throttle}, {"reorder-wait", r.ReorderWait}, {"queue", r.Queue.Time}} {
		if s.time != 0 && s.time < minTime || s.time > maxDelay {
			return settingErrorf(s.name, "%v is out of range (0, or %v to %v)", s.time, minTime, maxDelay)
		}
	}
	for _, s := range [...]struct {
		name      string
		value     int64
		low, high int64
	}{
		{"rate", r.Rate, minRate, maxRate}, {"burst", int64(r.Burst), 1, maxBytes}, {"queue", int64(r.Queue.Packets), 1, math.MaxInt32},
		{"queue", int64(r.Queue.Bytes), 1, maxBytes}, {"reorder-by", int64(r.ReorderBy), 1, maxBehind},
	} {
		if s.value != 0 && (s.value < s.low || s.value > s.high) {
			return settingErrorf(s.name, "%d is out of range (%d to %d)", s.value, s.low, s.high)
		}
	}
	return r.checkTogether()
}

// checkTogether checks settings that depend on others.
func (r *Rule) checkTogether() error {
	switch {
	case int(r.Direction) >= len(directionNames):
		return settingErrorf("direction", "there is no direction %d", r.Direction)
	case int(r.Distribution) >= len(distributionNames):
		return settingErrorf("distribution", "there is no distribution %d", r.Distribution)
	case r.LossRun != 0 && !(r.LossRun >= 1 && r.LossRun <= maxRun):
		return settingErrorf("loss-run", "%v is out of range (1 to %v packets)", r.LossRun, float64(maxRun))
	case r.LossRun != 0 && r.Loss < 1 && r.Loss > r.LossRun/(r.LossRun+1):
		return settingErrorf("loss-run", "with a loss of %.4g%% runs cannot be as short as %v on average: %.4g or more",
			r.Loss*100, r.LossRun, r.Loss/(1-r.Loss))
	}
	for _, s := range [...]struct {
		name  string
		set   bool
		needs string
		there bool
	}{
		{"loss-run", r.LossRun != 0, "loss", r.Loss != 0},
		{"burst", r.Burst != 0, "rate", r.Rate != 0},
		{"queue", r.Queue != Limit{}, "rate", r.Rate != 0},
		{"distribution", r.Distribution != Uniform, "jitter", r.Jitter != 0},
		{"unordered", r.Unordered, "jitter", r.Jitter != 0},
		{"reorder-by", r.ReorderBy != 0, "reorder", r.Reorder != 0},
		{"reorder-wait", r.ReorderWait != 0, "reorder", r.Reorder != 0},
	} {
		if s.set && !s.there {
			return settingErrorf(s.name, "it says nothing without %s", s.needs)
		}
	}
	return nil
}
