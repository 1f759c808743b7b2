package main

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/firewall"
	"github.com/opendivert/divert/impair"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/redirect"
	"github.com/opendivert/divert/web"
)

// checkMetrics has promtool read metrics, if it is installed.
func checkMetrics(t *testing.T, text string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not installed (Debian: apt-get install prometheus)")
		return
	}
	c := exec.Command(promtool, "check", "metrics")
	c.Stdin = strings.NewReader(text)
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s%s", err, out, text)
	}
}

// TestMetricsText writes every metric.
func TestMetricsText(t *testing.T) {
	var b bytes.Buffer
	e := &exposition{w: &b, common: []string{"command", "x\n\"y\"\\"}}
	e.stats(divert.Stats{Matched: 10, Received: 3, DroppedFull: 2, Waiting: 5, FlowDroppedBytes: 1 << 60})
	var a ageCounts
	for _, age := range []time.Duration{-1, time.Microsecond, 2 * time.Millisecond, time.Minute} {
		a.add(age)
	}
	e.ages(&a)
	e.about(&metricsAbout{
		answers: func() answerCounts { return answerCounts{Resets: 1, Unreachables: 2, Unanswered: 3} },
		impaired: func() impair.Stats {
			return impair.Stats{Rules: []impair.RuleStats{{Phase: 1, Packets: 7, Lost: 4}}, Held: 6}
		},
		proxied:  func() redirect.Stats { return redirect.Stats{Redirected: 8} },
		web:      func() web.Stats { return web.Stats{Blocked: 11} },
		firewall: func() firewall.Stats { return firewall.Stats{Denied: 12, Asked: 3, Unanswered: 1} },
		written:  func() uint64 { return 9 },
	})
	checkMetrics(t, b.String())
	const common = `{command="x\n\"y\"\\"`
	for _, want := range []string{
		"divert_matched_total" + common + "} 10\n", "divert_packets_total" + common + `,outcome="received"} 3` + "\n",
		"divert_packets_total" + common + `,outcome="dropped_full"} 2` + "\n", "divert_queue_packets" + common + "} 5\n",
		"divert_flow_bytes_total" + common + `,verdict="dropped"} 1.152921504606847e+18` + "\n",
		"divert_queue_age_seconds_bucket" + common + `,le="0.0001"} 2` + "\n", "divert_queue_age_seconds_bucket" + common + `,le="0.01"} 3` + "\n",
		"divert_queue_age_seconds_bucket" + common + `,le="16"} 3` + "\n", "divert_queue_age_seconds_bucket" + common + `,le="+Inf"} 4` + "\n",
		"divert_queue_age_seconds_sum" + common + "} 60.002001\n", "divert_queue_age_seconds_count" + common + "} 4\n",
		"divert_answers_total" + common + `,answer="unreachable"} 2` + "\n", "divert_impaired_total" + common + `,phase="2",rule="1",what="lost"} 4` + "\n",
		"divert_connections_total" + common + `,outcome="redirected"} 8` + "\n", "divert_written_total" + common + "} 9\n",
		"divert_blocked_total" + common + "} 11\n", "divert_decisions_total" + common + `,decision="denied"} 12` + "\n",
		"divert_asked_total" + common + `,answered="yes"} 2` + "\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, &b)
		}
	}
}

func TestMetricsLabels(t *testing.T) {
	for in, want := range map[string]string{
		"a": "a", `"\` + "\n": `\"\\\n`, "\xff": "\uFFFD", strings.Repeat("é", 200): strings.Repeat("é", 128) + "…",
	} {
		if got := labelText(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzMetricsLabels(f *testing.F) {
	f.Add("udp and \"\\\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := labelText(s)
		rest := strings.NewReplacer(`\\`, "", `\"`, "", `\n`, "").Replace(got)
		if strings.ContainsAny(rest, "\n\"\\") || len(got) > 3*metricsText+8 {
			t.Errorf("%q became %q", s, got)
		}
	})
}

// TestMetricsServer sends requests that the server answers, and others that it refuses.
func TestMetricsServer(t *testing.T) {
	m := &metricsServer{command: "proxy"}
	m.tell(metricsAbout{proxied: func() redirect.Stats { return redirect.Stats{Refused: 3} }})
	m.observe([]divert.Packet{{Addr: divert.Address{Timestamp: clock.Now()}}})
	for _, test := range []struct {
		method, path string
		status       int
		want         string
	}{
		{"GET", "/metrics", http.StatusOK, `divert_connections_total{command="proxy",outcome="refused"} 3`},
		{"GET", "/", http.StatusNotFound, "The metrics are at /metrics."},
		{"POST", "/metrics", http.StatusMethodNotAllowed, "read only"},
	} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(test.method, test.path, nil))
		if w.Code != test.status || !strings.Contains(w.Body.String(), test.want) {
			t.Errorf("%s %s: %d %s", test.method, test.path, w.Code, w.Body)
		}
	}
	var none *metricsServer // as of a run without --metrics
	none.tell(metricsAbout{})
	none.observe(nil)
	none.start("", "", nil)
	none.stop()
}

func TestMetricsErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"drop", "--metrics", "9433", "udp"}, exitUsage, "--metrics 9433: it must be an address and a port, as in 127.0.0.1:9433"},
		{[]string{"drop", "--metrics", "localhost:http", "udp"}, exitUsage, "--metrics localhost:http: it must be an address and a port"},
		{[]string{"drop", "--metrics", taken.Addr().String(), "udp"}, exitFailed, "--metrics: listen tcp " + taken.Addr().String()},
		{[]string{"proxy", "--to", "127.0.0.1:80", "--metrics", taken.Addr().String(), "tcp"}, exitFailed, "--metrics: listen tcp"},
		{[]string{"dump", "-r", "-", "--metrics", ":1"}, exitUsage, "--read and --metrics cannot be combined"},
	} {
		if r := runCommand(t, "", test.args...); r.status != test.status || !strings.HasPrefix(r.errout, "divert: "+test.want) {
			t.Errorf("%v: %+v", test.args, r)
		}
	}
}

// BenchmarkObserve measures the cost of --metrics for a batch of packets.
func BenchmarkObserve(b *testing.B) {
	m := &metricsServer{}
	ps := make([]divert.Packet, dumpBatch)
	b.ReportAllocs()
	for b.Loop() {
		m.observe(ps)
	}
}
