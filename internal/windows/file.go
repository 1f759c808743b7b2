package windows

import (
	"fmt"

	"github.com/opendivert/divert/internal/engine"
)

// driverFile returns the name of the driver's file for a program of a processor (GOARCH).
// wow64 tells that a 32-bit program runs on 64-bit Windows (specification: windows-driver.md 3).
func driverFile(arch string, wow64 bool) (string, error) {
	switch {
	case arch == "amd64", arch == "386" && wow64:
		return "WinDivert64.sys", nil
	case arch == "386":
		return "WinDivert32.sys", nil
	}
	return "", fmt.Errorf("there is no signed driver for Windows on %s: %w", arch, engine.ErrNotSupported)
}
