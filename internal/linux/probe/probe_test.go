//go:build linux

package probe

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestRun probes this system, whatever it has: the report must be consistent.
func TestRun(t *testing.T) {
	lab.Need(t)
	lab.CheckLeaks(t)
	r, err := Run()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Features) != len(Features) || r.Kernel == "" || r.Machine == "" {
		t.Fatalf("report %+v", r)
	}
	for i, f := range r.Features {
		t.Logf("%-26s %-5v %v %s", f.Name, f.Since, f.OK, f.Error)
		if f.Name != Features[i].Name || f.For == "" {
			t.Errorf("feature %d is %+v, want %s", i, f, Features[i].Name)
		}
		if f.OK != (f.Error == "") || f.OK != (f.Without == "") || f.OK != (f.Remedy == "") {
			t.Errorf("%s: of error, consequence and remedy some are there: %+v", f.Name, f)
		}
	}
	if r.Probed != "namespace" || r.ProbedError != "" {
		t.Errorf("probed %q %q, want namespace", r.Probed, r.ProbedError)
	}
	if r.Here && r.Engine == "" || !r.Here && r.HereError == "" {
		t.Errorf("here %v, engine %q, error %q", r.Here, r.Engine, r.HereError)
	}
	if _, left := os.LookupEnv(callerVariable); left {
		t.Error("the caller is left in the environment")
	}
}

// TestNothingIsLeft: the tests of features clean up after themselves, so that one does not help or harm another.
func TestNothingIsLeft(t *testing.T) {
	lab.Need(t)
	p := newProber(whoAmI(), nil)
	defer p.Close()
	if p.noHost != nil {
		t.Fatal(p.noHost)
	}
	before := lab.TakeSnapshot(p.host)
	for _, f := range Features {
		first := p.Test(f)
		for _, l := range before.Leaks() {
			t.Errorf("%s leaves %s", f.Name, l)
		}
		if second := p.Test(f); second != first {
			t.Errorf("%s: %v, and asked again %v", f.Name, first, second)
		}
	}
}

// TestWithoutNamespaces: without a namespace, features that need one are not tried.
func TestWithoutNamespaces(t *testing.T) {
	p := newProber(caller{UID: 1000, Programs: "operation not permitted"}, lab.ErrUnavailable)
	r, err := p.report()
	if err != nil {
		t.Fatal(err)
	}
	if r.Probed != "nowhere" || r.Here || r.Engine != "" || r.HereError == "" {
		t.Errorf("report %+v", r)
	}
	triedAnyway := map[string]bool{
		"CAP_NET_ADMIN": true, "CAP_NET_RAW": true, "CAP_DAC_READ_SEARCH": true, "CAP_BPF": true, "CAP_PERFMON": true, "CAP_SYS_ADMIN": true,
		"network namespaces": true, "user namespaces": true, "eBPF filter programs": true, "bpf_loop": true,
	}
	for _, f := range r.Features {
		if f.Tried != triedAnyway[f.Name] {
			t.Errorf("%s: tried %v: %s", f.Name, f.Tried, f.Error)
		}
		if f.OK && f.Name != "user namespaces" {
			t.Errorf("%s is there", f.Name)
		}
	}
}

func TestErrors(t *testing.T) {
	f := &Feature{Name: "time travel", Since: since(5, 12), test: func(*Prober) error { return unix.EINVAL }}
	rows := []struct {
		name   string
		kernel Version
		want   string
		old    bool
	}{
		{"older major", since(4, 19), "time travel not supported (requires >= 5.12)", true},
		{"older minor", since(5, 10), "time travel not supported (requires >= 5.12)", true},
		{"new enough", since(5, 12), "time travel not available: invalid argument", false},
		{"newer", since(6, 1), "time travel not available: invalid argument", false},
	}
	for _, row := range rows {
		p := &Prober{kernel: row.kernel, results: map[*Feature]error{}}
		err := p.Test(f)
		if err == nil || err.Error() != row.want {
			t.Errorf("%s: %v, want %s", row.name, err, row.want)
		}
		if !errors.Is(err, unix.EINVAL) || errors.Is(err, engine.ErrNotSupported) != row.old {
			t.Errorf("%s: %v is not what it should be", row.name, err)
		}
	}
}

func TestCallerSurvivesTheSecondStart(t *testing.T) {
	want := caller{UID: 1000, Capabilities: 1 << unix.CAP_NET_ADMIN, Programs: "no"}
	t.Cleanup(func() { os.Unsetenv(callerVariable) })
	if err := want.remember(); err != nil {
		t.Fatal(err)
	}
	want.Rootless = true
	if got := whoAmI(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if first := whoAmI(); first.Rootless || first.UID != os.Getuid() {
		t.Errorf("after that: %+v", first)
	}
}

func TestJSON(t *testing.T) {
	b, err := json.Marshal(Result{Name: "x", Since: since(5, 18), For: "y", OK: true, Tried: true})
	if want := `{"name":"x","since":"5.18","for":"y","ok":true,"tried":true}`; err != nil || string(b) != want {
		t.Errorf("%s %v, want %s", b, err, want)
	}
	if b, err := json.Marshal(Version{}); err != nil || !strings.Contains(string(b), `""`) {
		t.Errorf("no version: %s %v", b, err)
	}
}

// TestTriesCanFail: features that no kernel has are found missing, so that a success means something.
func TestTriesCanFail(t *testing.T) {
	lab.Need(t)
	p := newProber(whoAmI(), nil)
	defer p.Close()
	info := make(xt.Unknown, 8)
	for _, row := range []struct {
		name string
		test func(*Prober) error
	}{
		{"target", rule(&expr.Target{Name: "NOSUCH", Rev: 3, Info: &info})},
		{"program", rule(askProgram(0xffff))},
		{"fib without a result", rule(&expr.Fib{Register: unix.NFT_REG_1, FlagDADDR: true})},
		{"capability", capability(63)},
	} {
		if err := row.test(p); err == nil || errors.Is(err, ErrNotTried) {
			t.Errorf("%s: %v, want a failure", row.name, err)
		}
	}
}
