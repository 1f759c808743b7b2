//go:build linux

package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/rights"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Feature is something that the kernel, the system or the rights of the user must give.
type Feature struct {
	Name    string
	Since   Version // first kernel version that has it
	For     string  // its use
	Without string  // the functions that do not work without it
	Remedy  string  // what to do about it
	test    func(*Prober) error
}

// Prober tries features, each once, in a network namespace of its own. It is for one goroutine.
type Prober struct {
	caller  caller
	kernel  Version
	network *lab.Network // nil: there is no namespace to try in
	host    *lab.Host
	noHost  error // why
	results map[*Feature]error
}

// caller describes the process before it started itself again in a user namespace.
type caller struct {
	UID          int
	Capabilities uint64
	Programs     string // why it cannot load filter programs, "" if it can
	Loops        string // why they cannot walk over headers without a bound, "" if they can
	Rootless     bool   // it did start itself again
	Warnings     []Warning
}

// callerVariable hands the caller to the second start.
const callerVariable = "DIVERT_PROBE_CALLER"

// Run probes everything. As an ordinary user it starts the program again in a user namespace, as
// lab.Rootless does, to probe there.
func Run() (*Report, error) {
	c := whoAmI()
	if err := c.remember(); err != nil {
		return nil, err
	}
	p := newProber(c, lab.Rootless())
	os.Unsetenv(callerVariable)
	r, err := p.report()
	return r, errors.Join(err, p.Close())
}

// newProber returns a prober that tries in a new namespace, or, if unavailable is not nil, one that tries only features that
// need none.
func newProber(c caller, unavailable error) *Prober {
	is, _ := kernel.Running()
	p := &Prober{caller: c, kernel: is, noHost: unavailable, results: map[*Feature]error{}}
	if p.noHost != nil {
		return p
	}
	if p.network, p.noHost = lab.New(); p.noHost == nil {
		p.host, p.noHost = p.network.AddHost("probe")
	}
	return p
}

// Close lets go of the namespace.
func (p *Prober) Close() error {
	if p.network == nil {
		return nil
	}
	return p.network.Close()
}

// Test tries a feature, or returns the result of the first try: nil, or an *Error.
func (p *Prober) Test(f *Feature) error {
	err, known := p.results[f]
	if !known {
		if err = f.test(p); err != nil {
			e := &Error{Feature: f.Name, Err: err}
			if p.kernel.Before(f.Since) {
				e.Since = f.Since
			}
			err = e
		}
		p.results[f] = err
	}
	return err
}

// inside runs f on a thread in the namespace.
func (p *Prober) inside(f func() error) error {
	if p.host == nil {
		return fmt.Errorf("%w: there is no network namespace to try it in", ErrNotTried)
	}
	return p.host.Do(f)
}

// report tries all features and an actual handle.
func (p *Prober) report() (*Report, error) {
	release, machine := kernel.Release()
	if release == "" {
		return nil, errors.New("the kernel does not tell its version (uname)")
	}
	_ = p.inside(rules.LoadExtensions) // as a handle does that opens; the tests find missing ones
	r := &Report{
		Kernel: release, Machine: machine,
		User: p.caller.UID, Probed: "namespace", Warnings: p.caller.Warnings,
	}
	switch {
	case p.host == nil:
		r.Probed, r.ProbedError = "nowhere", p.noHost.Error()
	case p.caller.Rootless:
		r.Probed = "rootless"
	}
	for _, f := range Features {
		r.Features = append(r.Features, p.result(f))
	}
	p.judge(r)
	return r, nil
}

// result tries a feature and describes how that ended.
func (p *Prober) result(f *Feature) Result {
	r := Result{Name: f.Name, Since: f.Since, For: f.For, OK: true, Tried: true}
	if err := p.Test(f); err != nil {
		r.OK, r.Tried = false, !errors.Is(err, ErrNotTried)
		r.Error, r.Without, r.Remedy = err.Error(), f.Without, f.Remedy
	}
	return r
}

// judge says whether and how handles are served, by opening one.
func (p *Prober) judge(r *Report) {
	failed := p.inside(func() (err error) { r.Engine, err = tryHandle(); return err })
	if err := p.Test(capNetAdmin); err != nil {
		failed = err // it may have succeeded in a rootless network
	}
	r.Here, r.HereTried = failed == nil, !errors.Is(failed, ErrNotTried)
	if failed != nil {
		r.HereError = failed.Error()
	}
	if r.Here && p.caller.Rootless && p.caller.Programs == "" {
		// It has the rights that count, but none to make namespaces: what it can load, it can load here.
		r.Engine = "eBPF in netfilter"
	}
	if err := p.Test(capRead); r.Here && err != nil {
		r.Engine += fmt.Sprintf("; but only those that sniff or drop: %v", err)
	}
}

// tryHandle opens a handle and returns how it is served.
func tryHandle() (string, error) {
	p := prog.Only(packet.LayerNetwork, prog.FieldIP)
	h, err := linux.Open(engine.Config{Program: p, Queues: 1, Limits: engine.Limits{Length: 32, Time: 1e9, Size: 1 << 16}})
	if err != nil {
		return "", err
	}
	return h.Description(), h.Close()
}

// whoAmI returns the caller: this process, or the one whose second start it is.
func whoAmI() caller {
	var c caller
	if text, ok := os.LookupEnv(callerVariable); ok && json.Unmarshal([]byte(text), &c) == nil {
		os.Unsetenv(callerVariable)
		c.Rootless = true
		return c
	}
	c.UID = os.Getuid()
	c.Warnings = look().warnings()
	c.Capabilities, _ = rights.Effective() // none if it cannot be told
	switch err := loadProgram(func(int) error { return nil }); {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		c.Programs = rights.Refusal(err).Error()
	case err != nil:
		c.Programs = err.Error()
	}
	if c.Programs == "" {
		if err := codegen.Loops.Err(); err != nil {
			c.Loops = err.Error()
		}
	}
	return c
}

// remember leaves the caller for a second start.
func (c caller) remember() error {
	if c.Rootless {
		return nil
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.Setenv(callerVariable, string(text))
}
