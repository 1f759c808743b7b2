package firewall

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// folder returns a folder for a test's files, removed after the test. Wine 8 removes files only one by one, so t.TempDir
// would fail tests there.
func folder(t testing.TB) string {
	t.Helper()
	if runtime.GOOS != "windows" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("", "firewall")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		names, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, name := range append(names, dir) {
			if err := os.Remove(name); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}
