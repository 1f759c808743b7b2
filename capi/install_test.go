//go:build linux

package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInstall installs the library into a folder, compiles a program with what pkg-config says, and runs it.
func TestInstall(t *testing.T) {
	library(t) // skips without a compiler
	for _, tool := range []string{"make", "pkg-config", "nm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	root := t.TempDir()
	must(t, "make", "-s", "install", "PREFIX="+root, "OUT="+t.TempDir())
	t.Setenv("PKG_CONFIG_PATH", filepath.Join(root, "lib", "pkgconfig"))
	flags := strings.Fields(must(t, "pkg-config", "--cflags", "--libs", "windivert"))
	program := filepath.Join(root, "interface")
	args := append([]string{"-o", program, filepath.Join("testdata", "interface.c")}, flags...)
	must(t, "gcc", append(args, "-Wl,-rpath,"+filepath.Join(root, "lib"))...)
	must(t, program)
	if man, err := os.ReadFile(filepath.Join(root, "share", "man", "man7", "windivert.7")); err != nil || len(man) == 0 {
		t.Errorf("the manual page: %d bytes, %v", len(man), err)
	}
	shown := strings.Fields(must(t, "nm", "-D", "--defined-only", "--format=posix", filepath.Join(root, "lib", "libwindivert.so.2")))
	for i := 0; i+1 < len(shown); i++ {
		if kind := shown[i+1]; kind == "T" && !strings.HasPrefix(shown[i], "WinDivert") {
			t.Errorf("the library shows %s", shown[i])
		}
	}
}

// must runs a command and returns its output.
func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
