package windows

import (
	"fmt"
	"strings"

	"github.com/opendivert/divert/internal/engine"
)

// driverFile returns the name of the driver's file for a program of a processor (GOARCH). wow64 means that a 32-bit
// program runs on 64-bit Windows (specification: windows-driver.md 3).
func driverFile(arch string, wow64 bool) (string, error) {
	switch {
	case arch == "amd64", arch == "386" && wow64:
		return "WinDivert64.sys", nil
	case arch == "386":
		return "WinDivert32.sys", nil
	}
	return "", fmt.Errorf("there is no signed driver for Windows on %s: %w", arch, engine.ErrNotSupported)
}

// imagePath returns the file of a kernel service, from the path in its configuration; empty if only the kernel can follow
// that path.
func imagePath(path, systemRoot string) string {
	path = strings.Trim(path, `"`)
	if rest, ok := cutPrefixFold(path, `\??\UNC\`); ok {
		return `\\` + rest
	}
	if rest, ok := cutPrefixFold(path, `\??\`); ok {
		return rest
	}
	if rest, ok := cutPrefixFold(path, `\SystemRoot\`); ok {
		return systemRoot + `\` + rest
	}
	switch {
	case path == "", strings.HasPrefix(path, `\`):
		return ""
	case len(path) > 2 && path[1] == ':':
		return path
	}
	return systemRoot + `\` + path
}

// cutPrefixFold is strings.CutPrefix for Windows names, which ignore case.
func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}
