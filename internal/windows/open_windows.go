package windows

import (
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// Open opens a handle. It installs and starts the driver if it is not running, unless the flags forbid it. The driver's
// file is cfg.Driver, else that of the environment variable EnvDriver, else the one next to the program, or to the
// library that this package is part of. Open needs the rights of an Administrator.
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
		if layer == packet.LayerReflect {
			d.mark, _ = newMark() // without one the handle is invisible, like those of other programs
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

// OpenFile opens a handle of the driver, as Open does, for a program that makes its own requests: WinDivert.dll. It
// returns the Windows handle of the device, which the caller closes. It fails with engine.ErrNotSupported for filters
// that the driver cannot express. It uses only Program, Priority, Flags and Driver of the configuration.
func OpenFile(cfg engine.Config) (uintptr, error) {
	if err := checkProcessor(); err != nil {
		return 0, err
	}
	cfg.Mode = engine.ModeKernel
	p, err := planFor(&cfg, cfg.Program)
	if err != nil {
		return 0, err
	}
	d, err := connect(cfg.Flags&engine.FlagNoInstall != 0, cfg.Driver)
	if err != nil {
		return 0, err
	}
	if err := d.start(cfg.Program.Layer(), cfg.Priority, p); err != nil {
		_ = d.close()
		return 0, err
	}
	return d.detach(), nil
}
