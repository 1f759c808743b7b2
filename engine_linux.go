package divert

import (
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux"
)

// openEngine opens a handle of this platform.
func openEngine(cfg engine.Config) (engine.Handle, error) { return linux.Open(cfg) }
