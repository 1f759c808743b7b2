//go:build linux

package kernel

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
)

// Feature is a feature of Linux that the engine uses where the kernel has it and does without elsewhere. divert doctor lists it
// from the same value. Its value stands in the package that tries it, or here if the kernel's version alone decides. It must not
// be copied; its methods may be called from several goroutines.
type Feature struct {
	Name    string
	Since   Version // first version of Linux that has it
	For     string  // its use
	Without string  // the effect for the user if it is missing
	Remedy  string  // what to do about it

	// Probe tries the feature and returns why it is missing, nil if it is there. Without Probe the version of the kernel decides.
	Probe func() error
	// Mutable says that the answer depends on more than the kernel and the rights, on mounts for example: only success is remembered.
	Mutable bool

	mu    sync.Mutex // one goroutine tries
	known atomic.Pointer[answer]
}

// answer is the outcome of a try: nil if the feature is there.
type answer struct{ err error }

// Err returns why the kernel lacks the feature, nil if it has it. The answer is remembered, unless rights were missing (another
// thread, or the same one later, may have them) or Mutable says otherwise.
func (f *Feature) Err() error {
	if a := f.known.Load(); a != nil { // without the lock: it is asked for each packet
		return a.err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := f.known.Load(); a != nil {
		return a.err
	}
	err := f.try()
	if err == nil || !f.Mutable && !errors.Is(err, os.ErrPermission) {
		f.known.Store(&answer{err})
	}
	return err
}

// Has reports whether the kernel has the feature.
func (f *Feature) Has() bool { return f.Err() == nil }

func (f *Feature) try() error {
	if f.Probe != nil {
		return f.Probe()
	}
	if !AtLeast(f.Since) {
		release, _ := Release()
		return fmt.Errorf("it came with Linux %v, and this is %s", f.Since, release)
	}
	return nil
}

// Assume makes the feature present or absent, for tests of both, until restore is called.
func (f *Feature) Assume(has bool) (restore func()) {
	assumed := new(answer)
	if !has {
		assumed.err = errors.New("assumed not to be there")
	}
	before := f.known.Swap(assumed)
	return func() { f.known.Store(before) }
}

// Features that the kernel's version alone decides.
var (
	// VerdictPriority: verdicts can set the priority of a packet (NFQA_PRIORITY).
	VerdictPriority = &Feature{
		Name: "verdicts with priority", Since: Version{5, 18}, For: "several handles in a row",
		Without: "a packet sent on by one handle passes those of lower priority", Remedy: "a newer kernel",
	}
	// FinishedSCTP: the kernel finishes the CRC32c of an SCTP packet that it queues. Before, it writes another sum there.
	FinishedSCTP = &Feature{
		Name: "SCTP checksums in the packet queue", Since: Version{6, 11}, For: "SCTP packets that come whole, with their checksum",
		Without: "SCTP is queued as it is, and its checksum is computed in user space", Remedy: "a newer kernel",
	}
	// CoarseClock: programs can read the clock's last tick (bpf_ktime_get_coarse_ns).
	CoarseClock = &Feature{
		Name: "the coarse clock in eBPF programs", Since: Version{5, 11}, For: "verdicts of flows: when a flow had its last packet",
		Without: "programs read the exact clock, which takes longer", Remedy: "a newer kernel",
	}
)
