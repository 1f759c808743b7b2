package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/firewall"
	"github.com/opendivert/divert/impair"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/redirect"
	"github.com/opendivert/divert/web"
	"github.com/spf13/cobra"
	"golang.org/x/net/netutil"
)

// metricsServer serves the metrics of a run to Prometheus, in its text format
// (prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4). It leaves out metrics whose source is nil.
type metricsServer struct {
	listener net.Listener
	server   *http.Server
	ages     ageCounts

	mu      sync.Mutex // guards the fields below
	command string
	filter  string
	handle  *divert.Handle
	about   metricsAbout
}

// metricsAbout are the counters of a run besides those of its handle. Other goroutines call its functions.
type metricsAbout struct {
	answers  func() answerCounts
	impaired func() impair.Stats
	proxied  func() redirect.Stats
	written  func() uint64
	web      func() web.Stats
	firewall func() firewall.Stats
}

// The limits of the server: anybody may connect to it.
const (
	metricsTimeout     = 5 * time.Second
	metricsConnections = 32
	metricsHeader      = 8 << 10
	metricsText        = 256 // bytes of a label whose text users choose
)

// addMetrics adds the flag --metrics.
func (s *scope) addMetrics(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.metricsAt, "metrics", "", "serve the counters to Prometheus at an `address` and port, as in 127.0.0.1:9433, path /metrics")
}

// listenMetrics begins to listen, before the run touches any packet.
func (s *scope) listenMetrics() error {
	if s.metricsAt == "" || s.metrics != nil {
		return nil
	}
	_, port, err := net.SplitHostPort(s.metricsAt)
	if _, number := strconv.ParseUint(port, 10, 16); err != nil || number != nil {
		return usagef("--metrics %s: it must be an address and a port, as in 127.0.0.1:9433, or :9433 for all addresses", printable(s.metricsAt))
	}
	l, err := net.Listen("tcp", s.metricsAt)
	if err != nil {
		return fmt.Errorf("--metrics: %w", err)
	}
	m := &metricsServer{listener: netutil.LimitListener(l, metricsConnections)}
	m.server = &http.Server{
		Handler: m, ReadTimeout: metricsTimeout, WriteTimeout: metricsTimeout, IdleTimeout: metricsTimeout, MaxHeaderBytes: metricsHeader,
	}
	s.metrics = m
	return nil
}

// start begins to serve the counters of a run. The nil server does nothing.
func (m *metricsServer) start(command, filter string, h *divert.Handle) {
	if m == nil {
		return
	}
	m.mu.Lock()
	m.command, m.filter, m.handle = command, filter, h
	m.mu.Unlock()
	go func() { _ = m.server.Serve(m.listener) }() // it ends when the server is closed
}

// tell sets further counters to serve.
func (m *metricsServer) tell(about metricsAbout) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.about = about
}

// stop ends the server.
func (m *metricsServer) stop() {
	if m == nil {
		return
	}
	_ = errors.Join(m.server.Close(), m.listener.Close()) // nothing can be lost
}

// observe records the age of packets received just now; the first of a batch is the oldest.
func (m *metricsServer) observe(ps []divert.Packet) {
	if m == nil || len(ps) == 0 {
		return
	}
	m.ages.add(time.Duration(float64(clock.Now()-ps[0].Addr.Timestamp) * clock.Tick()))
}

// ageCounts is a histogram of packets' waiting times. Several goroutines may use it.
type ageCounts struct {
	counts [len(ageBounds) + 1]atomic.Uint64
	sum    atomic.Int64 // in nanoseconds
}

// ageBounds are the upper bounds of the histogram. A packet waits 16 s at most.
var ageBounds = [...]time.Duration{
	100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 4 * time.Second, 16 * time.Second,
}

func (a *ageCounts) add(age time.Duration) {
	i := 0
	for i < len(ageBounds) && age > ageBounds[i] {
		i++
	}
	a.counts[i].Add(1)
	a.sum.Add(int64(max(0, age)))
}

// ServeHTTP answers requests for /metrics.
func (m *metricsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/metrics" {
		http.Error(w, "The metrics are at /metrics.", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "The metrics can be read only.", http.StatusMethodNotAllowed)
		return
	}
	var b bytes.Buffer
	if err := m.write(&b); err != nil {
		http.Error(w, plain(err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(b.Bytes()) // the reader is gone
}

// write writes all metrics.
func (m *metricsServer) write(b *bytes.Buffer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := &exposition{w: b}
	e.metric("divert_build_info", "gauge", "The version of divert.")
	e.value(1, "version", buildVersion(), "goversion", runtime.Version())
	if h := m.handle; h != nil {
		s, err := h.Stats()
		if err != nil {
			return err
		}
		e.common = []string{"command", m.command, "layer", word(h.Layer()), "priority", strconv.Itoa(int(h.Priority()))}
		e.metric("divert_handle_info", "gauge", "The handle: its filter, and how it is served.")
		e.value(1, "filter", m.filter, "engine", h.Description())
		e.stats(s)
		e.metric("divert_queue_limit_packets", "gauge", "Packets or events that may wait.")
		e.value(float64(h.QueueLength()))
		e.metric("divert_queue_limit_seconds", "gauge", "How long one may wait.")
		e.value(h.QueueTime().Seconds())
		e.metric("divert_queue_limit_bytes", "gauge", "Bytes that may wait.")
		e.value(float64(h.QueueSize()))
		if h.Flags()&divert.Drop == 0 && m.about.impaired == nil && m.about.web == nil && m.about.firewall == nil {
			e.ages(&m.ages)
		}
	} else {
		e.common = []string{"command", m.command}
	}
	e.about(&m.about)
	return nil
}

// exposition writes the text format.
type exposition struct {
	w      io.Writer
	common []string // labels of each value: name, value, name, value …
	name   string
}

// metric begins a metric.
func (e *exposition) metric(name, kind, help string) {
	e.name = name
	fmt.Fprintf(e.w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// value writes a value of the metric, with labels.
func (e *exposition) value(v float64, labels ...string) { e.sample("", v, labels...) }

func (e *exposition) sample(suffix string, v float64, labels ...string) {
	var all []string
	for _, list := range [][]string{e.common, labels} {
		for i := 0; i+1 < len(list); i += 2 {
			all = append(all, list[i]+`="`+labelText(list[i+1])+`"`)
		}
	}
	set := ""
	if len(all) > 0 {
		set = "{" + strings.Join(all, ",") + "}"
	}
	fmt.Fprintf(e.w, "%s%s%s %s\n", e.name, suffix, set, strconv.FormatFloat(v, 'g', -1, 64))
}

// labelText escapes and shortens the value of a label.
func labelText(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) > metricsText {
		end := metricsText
		for !utf8.RuneStart(s[end]) {
			end--
		}
		s = s[:end] + "…"
	}
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s)
}

// stats writes the counters of a handle.
func (e *exposition) stats(s divert.Stats) {
	e.metric("divert_matched_total", "counter", "Packets or events that matched the filter.")
	e.value(float64(s.Matched))
	e.metric("divert_packets_total", "counter", "Where those that matched are, but for those that wait; dropped_full, dropped_old and dropped_long are losses of the queue.")
	for _, c := range []struct {
		outcome string
		n       uint64
	}{
		{"received", s.Received}, {"dropped", s.Dropped}, {"dropped_full", s.DroppedFull}, {"dropped_old", s.DroppedOld},
		{"dropped_long", s.DroppedLong}, {"passed", s.Passed}, {"lost", s.Lost}, {"flow_accepted", s.FlowAccepted}, {"flow_dropped", s.FlowDropped},
		{"hang_passed", s.HangPassed}, {"hang_dropped", s.HangDropped},
	} {
		e.value(float64(c.n), "outcome", c.outcome)
	}
	e.metric("divert_queue_packets", "gauge", "Packets or events that wait for the program.")
	e.value(float64(s.Waiting))
	e.metric("divert_sent_total", "counter", "Packets sent: received ones that went on, and new ones.")
	e.value(float64(s.Reinjected), "kind", "reinjected")
	e.value(float64(s.Injected), "kind", "injected")
	e.metric("divert_abandoned_total", "counter", "Received packets that are gone: dropped, or not sent on for too long.")
	e.value(float64(s.Abandoned))
	e.metric("divert_failed_total", "counter", "Sends that were refused.")
	e.value(float64(s.Failed))
	e.metric("divert_foreign_total", "counter", "Packets that rules of other programs led to the queue; they went on.")
	e.value(float64(s.Foreign))
	e.metric("divert_flow_bytes_total", "counter", "Bytes of packets that the verdict of their flow decided on.")
	e.value(float64(s.FlowAcceptedBytes), "verdict", "accepted")
	e.value(float64(s.FlowDroppedBytes), "verdict", "dropped")
}

// ages writes the histogram of ages.
func (e *exposition) ages(a *ageCounts) {
	e.metric("divert_queue_age_seconds", "histogram", "How long the oldest packet of each batch had waited when it was received.")
	sum, total := float64(a.sum.Load())/1e9, uint64(0)
	for i, bound := range ageBounds {
		total += a.counts[i].Load()
		e.sample("_bucket", float64(total), "le", strconv.FormatFloat(bound.Seconds(), 'g', -1, 64))
	}
	total += a.counts[len(ageBounds)].Load()
	e.sample("_bucket", float64(total), "le", "+Inf")
	e.sample("_sum", sum)
	e.sample("_count", float64(total))
}

// about writes the counters of the command itself.
func (e *exposition) about(a *metricsAbout) {
	if a.answers != nil {
		c := a.answers()
		e.metric("divert_answers_total", "counter", "Packets that were rejected, by the answer to them.")
		e.value(float64(c.Resets), "answer", "reset")
		e.value(float64(c.Unreachables), "answer", "unreachable")
		e.value(float64(c.Unanswered), "answer", "none")
	}
	if a.written != nil {
		e.metric("divert_written_total", "counter", "Packets that were written to the capture file.")
		e.value(float64(a.written()))
	}
	if a.proxied != nil {
		s := a.proxied()
		e.metric("divert_connections_total", "counter", "Connections and exchanges by outcome.")
		for _, c := range []struct {
			outcome string
			n       uint64
		}{{"redirected", s.Redirected}, {"spared", s.Spared}, {"refused", s.Refused}, {"full", s.Full}, {"stranger", s.Strangers}} {
			e.value(float64(c.n), "outcome", c.outcome)
		}
	}
	if a.web != nil {
		e.web(a.web())
	}
	if a.firewall != nil {
		e.firewall(a.firewall())
	}
	if a.impaired != nil {
		e.impaired(a.impaired())
	}
}

// web writes the counters of web.
func (e *exposition) web(s web.Stats) {
	e.metric("divert_judged_total", "counter", "Requests, hellos and connections whose names were judged.")
	e.value(float64(s.HTTP), "protocol", "http")
	e.value(float64(s.TLS), "protocol", "tls")
	e.value(float64(s.QUIC), "protocol", "quic")
	e.metric("divert_blocked_total", "counter", "Connections that were blocked.")
	e.value(float64(s.Blocked))
	e.metric("divert_unjudged_total", "counter", "Connections that passed without a name: of other protocols, or because nothing could be said of them.")
	e.value(float64(s.Other), "why", "other")
	e.value(float64(s.FailedOpen), "why", "failed_open")
	e.metric("divert_web_dropped_total", "counter", "Packets that were dropped because they could not be judged.")
	e.value(float64(s.Differing), "why", "differing")
	e.value(float64(s.Fragments), "why", "fragment")
	e.metric("divert_web_flows", "gauge", "Connections that are remembered.")
	e.value(float64(s.Flows))
	e.metric("divert_web_memory_bytes", "gauge", "Bytes that wait or are kept.")
	e.value(float64(s.Memory))
}

// firewall writes the counters of firewall run.
func (e *exposition) firewall(s firewall.Stats) {
	e.metric("divert_decisions_total", "counter", "Connections, and packets that belong to none, by decision.")
	e.value(float64(s.Allowed), "decision", "allowed")
	e.value(float64(s.Denied), "decision", "denied")
	e.value(float64(s.Rejected), "decision", "rejected")
	e.metric("divert_asked_total", "counter", "Questions, and those that nobody answered in time.")
	e.value(float64(s.Asked-s.Unanswered), "answered", "yes")
	e.value(float64(s.Unanswered), "answered", "no")
	e.metric("divert_reloads_total", "counter", "How often the rules were exchanged.")
	e.value(float64(s.Reloads))
	e.metric("divert_decision_slowest_seconds", "gauge", "The longest time from a packet's capture to its verdict, without questions and hellos.")
	e.value(s.Slowest.Seconds())
}

// impaired writes the counters of the rules of impair.
func (e *exposition) impaired(s impair.Stats) {
	rule := func(r *impair.RuleStats) []string {
		return []string{"phase", strconv.Itoa(r.Phase + 1), "rule", strconv.Itoa(r.Rule + 1)}
	}
	e.metric("divert_impair_packets_total", "counter", "Packets that a rule took.")
	for i := range s.Rules {
		e.value(float64(s.Rules[i].Packets), rule(&s.Rules[i])...)
	}
	e.metric("divert_impair_bytes_total", "counter", "Their bytes.")
	for i := range s.Rules {
		e.value(float64(s.Rules[i].Bytes), rule(&s.Rules[i])...)
	}
	e.metric("divert_impaired_total", "counter", "What rules did to packets; one packet may count several times.")
	for i := range s.Rules {
		r := &s.Rules[i]
		for _, c := range []struct {
			name string
			n    uint64
		}{
			{"lost", r.Lost}, {"reset", r.Reset}, {"corrupted", r.Corrupted}, {"duplicated", r.Duplicated}, {"delayed", r.Delayed},
			{"reordered", r.Reordered}, {"queue_full", r.QueueFull}, {"holding_full", r.HoldingFull}, {"ended", r.Ended},
		} {
			e.value(float64(c.n), append(rule(r), "what", c.name)...)
		}
	}
	e.metric("divert_impair_held_packets", "gauge", "Packets that wait now.")
	e.value(float64(s.Held))
	e.metric("divert_impair_held_bytes", "gauge", "Their bytes.")
	e.value(float64(s.HeldBytes))
	e.metric("divert_unimpaired_total", "counter", "Packets that no rule took.")
	e.value(float64(s.Unimpaired))
}
