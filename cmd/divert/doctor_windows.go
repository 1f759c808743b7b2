package main

import (
	"github.com/opendivert/divert/internal/windows"
)

const doctorHelp = `Look for what handles need on Windows: the processor, the rights of an Administrator, the file of the
driver, the services of Windows and of the driver, and the driver itself. Say of each what was found, what
does not work without it, and what to do about it.

Nothing is installed, started or captured.`

const doctorExample = "  divert doctor\n  divert doctor --driver C:\\WinDivert\\x64\n  divert doctor --json"

// diagnose is the command doctor.
func (a *app) diagnose(asJSON bool, driver string) error {
	r := windows.Diagnose(driver)
	if asJSON {
		return a.writeJSON(r)
	}
	return a.driverDiagnosis(r)
}
