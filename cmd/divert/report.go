package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/impair"
)

// report writes a run's messages to standard error: a line at the beginning and one at the end, in JSON if json is set.
type report struct {
	app   *app
	json  bool
	start time.Time
	scope *scope // nil: the run serves no metrics

	answers  *answerCounts // for runs that answer packets
	seed     *uint64       // for runs that use random numbers
	impaired *impair.Stats // for runs that impair packets
	written  *uint64       // packets in the capture file, for runs that write one too
}

// started is the JSON line at the beginning.
type started struct {
	Event    string `json:"event"` // "start"
	Command  string `json:"command"`
	Filter   string `json:"filter"`
	Layer    string `json:"layer"`
	Priority int16  `json:"priority"`
	Engine   string `json:"engine"`

	Seed *uint64 `json:"seed,omitempty"`
}

// begin reports what the run does and how. doing is the command as a present participle.
func (r *report) begin(command, doing, text string, h *divert.Handle) {
	r.start = time.Now()
	r.metrics().start(command, text, h)
	if err := tellReady(); err != nil {
		r.warn(err)
	}
	layer := word(h.Layer())
	if r.json {
		r.line(started{"start", command, text, layer, h.Priority(), h.Description(), r.seed})
		return
	}
	at := fmt.Sprintf(" at layer %s, priority %d", layer, h.Priority())
	fmt.Fprintln(r.app.errout, opening(r.app.errWidth, doing, at, h.Description()))
}

// summary is the JSON line at the end.
type summary struct {
	Event       string  `json:"event"` // "summary"
	Seconds     float64 `json:"seconds"`
	Matched     uint64  `json:"matched"`
	Received    uint64  `json:"received"`
	Reinjected  uint64  `json:"reinjected"`
	Injected    uint64  `json:"injected"`
	Failed      uint64  `json:"failed"`
	Dropped     uint64  `json:"dropped"`
	DroppedFull uint64  `json:"dropped_full"`
	DroppedOld  uint64  `json:"dropped_old"`
	DroppedLong uint64  `json:"dropped_long"`
	Passed      uint64  `json:"passed"`
	Lost        uint64  `json:"lost"`
	Foreign     uint64  `json:"foreign"`

	FlowAccepted      uint64 `json:"flow_accepted"`
	FlowAcceptedBytes uint64 `json:"flow_accepted_bytes"`
	FlowDropped       uint64 `json:"flow_dropped"`
	FlowDroppedBytes  uint64 `json:"flow_dropped_bytes"`
	HangPassed        uint64 `json:"hang_passed"`
	HangDropped       uint64 `json:"hang_dropped"`

	Answers  *answerCounts `json:"answers,omitempty"`
	Impaired *impairCounts `json:"impaired,omitempty"`
	Written  *uint64       `json:"written,omitempty"`
}

// metrics returns the server of the run, nil if it has none.
func (r *report) metrics() *metricsServer {
	if r.scope == nil {
		return nil
	}
	return r.scope.metrics
}

// end writes the handle's counters. The handle must not be closed yet.
func (r *report) end(h *divert.Handle) {
	r.metrics().stop()
	s, err := h.Stats()
	if err != nil {
		r.warn(err)
		return
	}
	took := time.Since(r.start)
	if r.json {
		r.line(summary{"summary", took.Round(time.Microsecond).Seconds(), s.Matched, s.Received, s.Reinjected, s.Injected, s.Failed,
			s.Dropped, s.DroppedFull, s.DroppedOld, s.DroppedLong, s.Passed, s.Lost, s.Foreign,
			s.FlowAccepted, s.FlowAcceptedBytes, s.FlowDropped, s.FlowDroppedBytes, s.HangPassed, s.HangDropped, r.answers, newImpairCounts(r.impaired), r.written})
		return
	}
	if r.impaired != nil {
		for i := range r.impaired.Rules {
			rule := &r.impaired.Rules[i]
			fmt.Fprintf(r.app.errout, "divert: phase %d, rule %d (%s): %s\n", rule.Phase+1, rule.Rule+1, oneLine(rule.Filter), impairText(rule))
		}
	}
	noun := "packet"
	if hasEvents(h.Layer()) {
		noun = "event"
	}
	text := summaryText(s, h.Flags(), noun)
	if c := r.answers; c != nil {
		text += fmt.Sprintf(", %d answered with RST, %d with ICMP, %d not answered", c.Resets, c.Unreachables, c.Unanswered)
	}
	if r.written != nil {
		text += fmt.Sprintf(", %d written", *r.written)
	}
	fmt.Fprintf(r.app.errout, "divert: %s in %v\n", text, took.Round(time.Millisecond))
}

// summaryText returns the counters of packets or events in words: the main ones for the kind of handle always, the
// others if they are not 0.
func summaryText(s divert.Stats, f divert.Flag, noun string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s matched", countOf(s.Matched, noun))
	if f&divert.Drop == 0 {
		fmt.Fprintf(&b, ", %d received", s.Received)
	}
	if f&(divert.Drop|divert.Sniff|divert.RecvOnly) == 0 {
		fmt.Fprintf(&b, ", %d sent", s.Reinjected+s.Injected)
	}
	for _, c := range [...]struct {
		n      uint64
		always bool
		text   string
	}{
		{s.Failed, false, "refused when sent"},
		{s.Dropped, f&divert.Drop != 0, "dropped"},
		{s.DroppedFull, false, "lost because the queue was full"},
		{s.DroppedOld, false, "lost because they waited too long"},
		{s.DroppedLong, false, "lost because they were too long for the queue"},
		{s.Lost, false, "lost in the kernel"},
		{s.Passed, false, "went on unseen"},
		{s.FlowAccepted, false, "accepted with their flow"},
		{s.FlowDropped, false, "dropped with their flow"},
		{s.HangPassed, false, "went on while the program hung"},
		{s.HangDropped, false, "dropped while the program hung"},
		{s.Foreign, false, "queued by another program's rules went on"},
	} {
		if c.n > 0 || c.always {
			fmt.Fprintf(&b, ", %d %s", c.n, c.text)
		}
	}
	return b.String()
}

// warning is a warning as JSON.
type warning struct {
	Event string `json:"event"` // "warning"
	Text  string `json:"text"`
}

// warn reports a failure that does not end the run.
func (r *report) warn(err error) {
	text := plain(err)
	if r.json {
		r.line(warning{"warning", text})
		return
	}
	fmt.Fprintf(r.app.errout, "divert: warning: %s\n", text)
}

// line writes a JSON object.
func (r *report) line(v any) {
	b, err := appendJSONLine(nil, v)
	if err == nil {
		_, _ = r.app.errout.Write(b) // there is no place to report it
	}
}
