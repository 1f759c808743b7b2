package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/opendivert/divert"
	"github.com/opendivert/divert/firewall"
	"github.com/opendivert/divert/impair"
	"github.com/opendivert/divert/redirect"
	"github.com/opendivert/divert/web"
)

// metricNames are the names of all metrics.
func metricNames() []string {
	var b bytes.Buffer
	e := &exposition{w: &b}
	e.stats(divert.Stats{})
	e.ages(&ageCounts{})
	e.about(&metricsAbout{
		answers:  func() answerCounts { return answerCounts{} },
		impaired: func() impair.Stats { return impair.Stats{} },
		proxied:  func() redirect.Stats { return redirect.Stats{} },
		web:      func() web.Stats { return web.Stats{Blocked: 11} },
		firewall: func() firewall.Stats { return firewall.Stats{Denied: 12, Asked: 3, Unanswered: 1} },
		written:  func() uint64 { return 0 },
	})
	names := []string{"divert_build_info", "divert_handle_info", "divert_queue_limit_packets", "divert_queue_limit_seconds", "divert_queue_limit_bytes"}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\w+) `).FindAllStringSubmatch(b.String(), -1) {
		names = append(names, m[1])
	}
	return names
}

// TestMetricsManual: the manual lists every metric, and its rules and dashboard use no others.
func TestMetricsManual(t *testing.T) {
	names := metricNames()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if !bytes.Contains(page, []byte("`"+n+"`")) {
			t.Errorf("docs/metrics.md lacks %s", n)
		}
	}
	for _, file := range []string{"../../docs/metrics.md", "../../docs/metrics/alerts.yml", "../../docs/metrics/dashboard.json"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range regexp.MustCompile(`\bdivert_\w+`).FindAllString(string(text), -1) {
			if !slices.Contains(names, strings.TrimSuffix(n, "_bucket")) {
				t.Errorf("%s: there is no metric %s", file, n)
			}
		}
	}
}

// TestMetricsFiles: the files for other programs are valid for those, and their divert commands are valid.
func TestMetricsFiles(t *testing.T) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("../../docs/metrics", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(read("dashboard.json"), &dashboard); err != nil || len(dashboard.Panels) == 0 {
		t.Errorf("dashboard.json: %v", err)
	}
	var daemons struct {
		Spec struct {
			Template struct {
				Spec struct{ Containers []struct{ Args []string } }
			}
		}
	}
	if err := yaml.Unmarshal(read("kubernetes.yaml"), &daemons); err != nil || len(daemons.Spec.Template.Spec.Containers) != 1 {
		t.Fatalf("kubernetes.yaml: %v", err)
	}
	if err := takes(daemons.Spec.Template.Spec.Containers[0].Args); err != nil {
		t.Errorf("kubernetes.yaml: %v", err)
	}
	start := regexp.MustCompile(`(?m)^ExecStart=\S+/divert (.*)$`).FindSubmatch(read("divert.service"))
	if start == nil {
		t.Fatal("divert.service starts no divert")
	}
	if err := takes(strings.Fields(string(start[1]))); err != nil { // systemd splits at blanks; nothing here is quoted
		t.Errorf("divert.service: %v", err)
	}
	if promtool, err := exec.LookPath("promtool"); err != nil {
		t.Log("promtool is not installed (Debian: apt-get install prometheus)")
	} else if out, err := exec.Command(promtool, "check", "rules", "../../docs/metrics/alerts.yml").CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
