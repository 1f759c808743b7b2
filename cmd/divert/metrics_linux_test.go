package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// scrape reads the metrics of a command on a host.
func scrape(t *testing.T, h *lab.Host, port int) string {
	t.Helper()
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) { return h.Dial(ctx, network, addr) }}}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%v: %s %s", err, r.Status, b)
	}
	return string(b)
}

// TestMetricsLive reads the metrics of every command that runs on, while traffic flows.
func TestMetricsLive(t *testing.T) {
	pair, echo := hosts(t)
	type run struct {
		args []string
		want []string // the names of metrics with labels, and values
	}
	runs := []run{
		{[]string{"dump", "udp.DstPort == 7"}, []string{`divert_matched_total{command="dump",layer="network",priority="0"} 2`,
			`divert_handle_info{command="dump",layer="network",priority="0",filter="udp.DstPort == 7",engine="`}},
		{[]string{"passthru", "--priority", "10", "udp.DstPort == 7"}, []string{`divert_sent_total{command="passthru",layer="network",priority="10",kind="reinjected"} 2`,
			`divert_queue_age_seconds_bucket{command="passthru",layer="network",priority="10",le="16"} `}},
		{[]string{"delay", "--priority", "20", "1ms", "udp.DstPort == 7"}, []string{`divert_impaired_total{command="impair",layer="network",priority="20",phase="1",rule="1",what="delayed"} 2`}},
		{[]string{"reject", "--priority", "-10", "inbound and udp"}, []string{`divert_answers_total{command="reject",layer="network",priority="-10",answer="unreachable"} 2`}},
		{[]string{"drop", "--priority", "-20", "icmp"}, []string{`divert_packets_total{command="drop",layer="network",priority="-20",outcome="dropped"} `}},
		{[]string{"watch"}, []string{`divert_matched_total{command="watch",layer="reflect",priority="-333"} `}},
	}
	list := blockList(t, "blocked.example")
	if tunMissing() == nil {
		runs = append(runs, run{[]string{"web", list}, []string{`divert_blocked_total{command="web",layer="network",priority="0"} 0`}})
	}
	if needProcesses() == nil {
		runs = append(runs, run{[]string{"proxy", "--to", "127.0.0.1:1", "tcp.DstPort == 1"}, []string{`divert_connections_total{command="proxy",outcome="redirected"} 0`}})
		runs = append(runs, run{[]string{"sockets"}, []string{`divert_matched_total{command="sockets",layer="socket",priority="0"} `}},
			run{[]string{"flows", "--top"}, []string{`divert_matched_total{command="flows",layer="flow",priority="0"} `}})
	}
	var started []*running
	for i, r := range runs {
		started = append(started, start(t, pair.A, append(r.args, "--metrics", fmt.Sprintf("127.0.0.1:%d", 9433+i))...))
	}
	exchange(t, pair.A, echo, 2, 300*time.Millisecond) // rejected on the way back
	for i, r := range runs {
		var text string
		missing := r.want[0]
		for begun := time.Now(); missing != "" && time.Since(begun) < 10*time.Second; time.Sleep(5 * time.Millisecond) {
			text, missing = scrape(t, pair.A, 9433+i), ""
			for _, want := range r.want {
				if !strings.Contains(text, "\n"+want) {
					missing = want
				}
			}
		}
		if missing != "" {
			t.Errorf("%v: %s is not in\n%s", r.args, missing, text)
		}
		checkMetrics(t, text)
	}
	for i, p := range started {
		if _, status := p.end(t, os.Interrupt); status != exitOK {
			t.Errorf("%v: status %d: %s", runs[i].args, status, p.errout)
		}
	}
}
