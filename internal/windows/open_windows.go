package windows

import (
	"github.com/opendivert/divert/internal/engine"
)

// Open opens a handle. The driver is installed and started if it is not running, unless the flags
// say no; the file that is installed is cfg.Driver, else that of the environment variable EnvDriver,
// else the one next to the executable. Open needs the rights of an Administrator.
//
// Failures of Windows and of the driver are of type *Error.
func Open(cfg engine.Config) (engine.Handle, error) {
	if err := checkProcessor(); err != nil {
		return nil, err
	}
	layer := cfg.Program.Layer()
	h, err := newHandle(cfg, func(priority int16, p *plan) (driver, error) {
		d, err := connect(cfg.Flags&engine.FlagNoInstall != 0, cfg.Driver)
		if err != nil {
			return nil, err
		}
		if err := d.start(layer, priority, p); err != nil {
			_ = d.close()
			return nil, err
		}
		return d, nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}
