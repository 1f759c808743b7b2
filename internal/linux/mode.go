//go:build linux

package linux

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/rights"
)

// probed is what probe remembers.
var probed struct {
	sync.Mutex
	done bool
	err  error
}

// probe loads a program like those of handles and remembers how that ended, unless rights were missing: another
// thread, or the same one later, may have them.
func probe() error {
	probed.Lock()
	defer probed.Unlock()
	if !probed.done {
		probed.err = tryProgram()
		probed.done = !errors.Is(probed.err, unix.EPERM) && !errors.Is(probed.err, unix.EACCES)
	}
	return probed.err
}

// tryProgram loads a program.
func tryProgram() error {
	loaded, err := codegen.LoadSmall()
	if err != nil {
		return err
	}
	return loaded.Close()
}

// decide chooses how it is decided which packets match, by the kernel or the interpreter, and says why in words.
func decide(mode engine.Mode) (engine.Mode, string, error) {
	if mode == engine.ModeInterpret {
		return mode, "interpreter, as asked for", nil
	}
	err := probe()
	switch {
	case err == nil:
		return engine.ModeKernel, "eBPF in netfilter", nil
	case mode == engine.ModeKernel:
		return 0, "", fmt.Errorf("eBPF programs cannot be loaded: %w", rights.Refusal(err))
	}
	return engine.ModeInterpret, fmt.Sprintf("interpreter, because eBPF programs cannot be loaded: %v", rights.Refusal(err)), nil
}

// mayPerfmon reports whether the process may do what CAP_PERFMON allows, as far as its own user namespace goes.
func mayPerfmon() bool {
	have, err := rights.Effective()
	return err != nil || have&(1<<unix.CAP_PERFMON|1<<unix.CAP_SYS_ADMIN) != 0
}

// isMissing reports whether the kernel refused rules because it lacks an expression in them.
func isMissing(err error) bool {
	for _, e := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
