package impair

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting is a field of a Rule with its name and value as text: for command lines and files.
type Setting struct {
	Name  string // lower case, words joined by "-"
	Value string // kind of its value, in a word; empty for those that are true or false
	Usage string // a line for help texts

	set func(*Rule, string) error
}

// Set sets the field from text. The error describes valid values; it does not name the setting.
func (s *Setting) Set(r *Rule, text string) error { return s.set(r, text) }

// Settings returns all fields of rules except the filter, in the order in which packets meet the impairments.
func Settings() []Setting { return slices.Clone(settings) }

var settings = []Setting{
	{"direction", "way", "impair only packets that go out or come in: both, out, in", setting(func(r *Rule) *Direction { return &r.Direction }, parseDirection)},
	{"loss", "share", "lose packets", setting(func(r *Rule) *float64 { return &r.Loss }, parseShare)},
	{"loss-run", "packets", "lose them in runs of this mean length", setting(func(r *Rule) *float64 { return &r.LossRun }, parseRun)},
	{"reset", "share", "replace TCP segments by resets of the connection, to both ends", setting(func(r *Rule) *float64 { return &r.Reset }, parseShare)},
	{"corrupt", "share", "flip a bit of packets, behind the IP headers", setting(func(r *Rule) *float64 { return &r.Corrupt }, parseShare)},
	{"duplicate", "share", "send packets twice", setting(func(r *Rule) *float64 { return &r.Duplicate }, parseShare)},
	{"rate", "rate", "limit the rate in each direction, as in 1mbit or 100kB/s", setting(func(r *Rule) *int64 { return &r.Rate }, parseRate)},
	{"burst", "bytes", "the most that may go at once after a pause, 1500 if not given", setting(func(r *Rule) *int { return &r.Burst }, parseBytes)},
	{"queue", "limit", "the most that may wait for the rate, as in 50 (packets), 64kB or 200ms or several with commas; 1000 if not given", setting(func(r *Rule) *Limit { return &r.Queue }, parseLimit)},
	{"lag", "time", "delay packets", setting(func(r *Rule) *time.Duration { return &r.Lag }, parseTime)},
	{"jitter", "time", "delay by more or less than the lag", setting(func(r *Rule) *time.Duration { return &r.Jitter }, parseTime)},
	{"distribution", "name", "of the jitter: uniform, normal, exponential, pareto", setting(func(r *Rule) *Distribution { return &r.Distribution }, parseDistribution)},
	{"unordered", "", "let jitter change the order of packets", setting(func(r *Rule) *bool { return &r.Unordered }, parseBool)},
	{"throttle", "time", "let packets go on only once in this time, all together", setting(func(r *Rule) *time.Duration { return &r.Throttle }, parseTime)},
	{"reorder", "share", "send packets behind those that follow", setting(func(r *Rule) *float64 { return &r.Reorder }, parseShare)},
	{"reorder-by", "packets", "behind how many, 1 if not given", setting(func(r *Rule) *int { return &r.ReorderBy }, parseCount)},
	{"reorder-wait", "time", "the longest that they wait for these, 100ms if not given", setting(func(r *Rule) *time.Duration { return &r.ReorderWait }, parseTime)},
}

// findSetting returns the setting of a name, nil if there is none.
func findSetting(name string) *Setting {
	if i := slices.IndexFunc(settings, func(s Setting) bool { return s.Name == name }); i >= 0 {
		return &settings[i]
	}
	return nil
}

// setting returns a function that parses text into a field.
func setting[T any](field func(*Rule) *T, parse func(string) (T, error)) func(*Rule, string) error {
	return func(r *Rule, text string) error {
		v, err := parse(strings.TrimSpace(text))
		if err == nil {
			*field(r) = v
		}
		return err
	}
}

// parseShare parses "1%" or "0.01".
func parseShare(text string) (float64, error) {
	number, percent := strings.CutSuffix(text, "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || math.IsNaN(v) {
		return 0, errors.New("takes a share of the packets, as in 1% or 0.01")
	}
	if percent {
		v /= 100
	}
	if v < 0 || v > 1 {
		if !percent {
			return 0, fmt.Errorf("%s is out of range (0 to 1, or 0%% to 100%%)", number)
		}
		return 0, fmt.Errorf("%s is out of range (0%% to 100%%)", text)
	}
	return v, nil
}

// parseRun parses the mean length of runs.
func parseRun(text string) (float64, error) {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || !(v >= 1 && v <= maxRun) {
		return 0, fmt.Errorf("takes the mean number of packets in a run, 1 to %v", float64(maxRun))
	}
	return v, nil
}

func parseCount(text string) (int, error) {
	v, err := strconv.Atoi(text)
	if err != nil || v < 1 || v > maxBehind {
		return 0, fmt.Errorf("takes a number of packets, 1 to %d", maxBehind)
	}
	return v, nil
}

func parseTime(text string) (time.Duration, error) {
	v, err := time.ParseDuration(text)
	switch {
	case err != nil && text != "" && strings.Trim(text, "0123456789.") == "":
		return 0, fmt.Errorf("%s has no unit: write %sms for milliseconds or %[1]ss for seconds", text, text)
	case err != nil:
		return 0, errors.New("takes a time with its unit, as in 100ms or 1.5s")
	case v != 0 && v < minTime || v > maxDelay:
		return 0, fmt.Errorf("%s is out of range (0, or %v to %v)", text, minTime, maxDelay)
	}
	return v, nil
}

func parseBool(text string) (bool, error) {
	switch text {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, errors.New("takes true or false")
}

func parseDirection(text string) (Direction, error) {
	i, err := parseName(directionNames, text)
	return Direction(i), err
}

func parseDistribution(text string) (Distribution, error) {
	i, err := parseName(distributionNames, text)
	return Distribution(i), err
}

func parseName(names []string, text string) (int, error) {
	if i := slices.Index(names, text); i >= 0 {
		return i, nil
	}
	return 0, fmt.Errorf("must be one of %s", strings.Join(names, ", "))
}

// A unit is the text behind a number, in lower case, and its factor.
type unit struct {
	suffix string
	factor float64
}

// rateUnits are those of rates, in bits a second. byteUnits are those of lengths. The longer ones come first.
var (
	rateUnits = []unit{
		{"kbit/s", 1e3}, {"mbit/s", 1e6}, {"gbit/s", 1e9}, {"bit/s", 1},
		{"kbit", 1e3}, {"mbit", 1e6}, {"gbit", 1e9}, {"bit", 1},
		{"kb/s", 8e3}, {"mb/s", 8e6}, {"gb/s", 8e9}, {"b/s", 8},
	}
	byteUnits = []unit{{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"b", 1}}
)

// parseUnit parses a number with one of the units. It fails for numbers without a unit.
func parseUnit(text string, units []unit) (float64, bool) {
	text = strings.ToLower(text)
	for _, u := range units {
		if number, ok := strings.CutSuffix(text, u.suffix); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
			return v * u.factor, err == nil && !math.IsNaN(v)
		}
	}
	return 0, false
}

// parseRate parses a rate. As with tc, kbit is 1,000 bits; bit/s means bit, and B/s means bytes.
func parseRate(text string) (int64, error) {
	v, ok := parseUnit(text, rateUnits)
	if !ok {
		return 0, errors.New("takes a rate with its unit: bit, kbit, mbit, gbit, or B/s, kB/s, MB/s, GB/s for bytes")
	}
	if v < minRate || v > float64(maxRate) {
		return 0, fmt.Errorf("%s is out of range (%dbit to %dgbit)", text, minRate, maxRate/1e9)
	}
	return int64(math.Round(v)), nil
}

func parseBytes(text string) (int, error) {
	v, ok := parseUnit(text, byteUnits)
	if n, err := strconv.ParseUint(text, 10, 41); err == nil {
		v, ok = float64(n), true
	}
	if !ok || v < 1 || v > maxBytes {
		return 0, errors.New("takes a number of bytes, as in 3000, 64kB or 1MiB")
	}
	return int(v), nil
}

// parseLimit parses limits with commas between: a bare number of packets, bytes with a unit, and a time.
func parseLimit(text string) (l Limit, err error) {
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if n, err := strconv.ParseUint(part, 10, 31); err == nil && n > 0 {
			l.Packets = int(n)
		} else if v, ok := parseUnit(part, byteUnits); ok && v >= 1 && v <= maxBytes {
			l.Bytes = int(v)
		} else if d, err := time.ParseDuration(part); err == nil && d >= minTime && d <= maxDelay {
			l.Time = d
		} else {
			return Limit{}, fmt.Errorf("%q is not a limit: write packets as 50, bytes as 64kB, or a time as 200ms", part)
		}
	}
	return l, nil
}
