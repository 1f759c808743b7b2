//go:build linux

package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestInstall installs the library into a folder, compiles a program with the options from pkg-config, and runs it.
func TestInstall(t *testing.T) {
	library(t) // skips without a compiler
	for _, tool := range []string{"make", "pkg-config", "nm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	root, built := t.TempDir(), t.TempDir()
	must(t, "make", "-s", "install", "PREFIX="+root, "OUT="+built)
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

// TestInstallForPackage installs prebuilt files without Go, as packagers do, and as root does after a user's "make":
// under a staging folder, with folders of its own choice. Then it uninstalls them.
func TestInstallForPackage(t *testing.T) {
	built := library(t)
	for _, tool := range []string{"make", "pkg-config"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	stage := t.TempDir()
	places := []string{"-s", "GO=false", "OUT=" + built, "DESTDIR=" + stage, "PREFIX=/usr", "LIBDIR=/usr/lib/somewhere"}
	must(t, "make", append(places, "install")...)
	want := []string{
		"usr/include/windivert.h", "usr/lib/somewhere/libwindivert.so", "usr/lib/somewhere/libwindivert.so.2",
		"usr/lib/somewhere/libwindivert.so.2.2.0", "usr/lib/somewhere/pkgconfig/windivert.pc", "usr/share/man/man7/windivert.7",
	}
	if got := files(t, stage); !slices.Equal(got, want) {
		t.Errorf("installed: %q, want %q", got, want)
	}
	if target, err := os.Readlink(filepath.Join(stage, want[1])); err != nil || target != "libwindivert.so.2" {
		t.Errorf("libwindivert.so is a link to %q (%v)", target, err)
	}
	pc, err := os.ReadFile(filepath.Join(stage, want[4]))
	if err != nil || strings.Contains(string(pc), stage) || strings.Contains(string(pc), "@") {
		t.Errorf("windivert.pc (%v):\n%s", err, pc)
	}
	t.Setenv("PKG_CONFIG_PATH", filepath.Join(stage, "usr/lib/somewhere/pkgconfig"))
	t.Setenv("PKG_CONFIG_SYSROOT_DIR", stage)
	flags := strings.Fields(must(t, "pkg-config", "--cflags", "--libs", "windivert"))
	if !slices.Contains(flags, "-L"+stage+"/usr/lib/somewhere") || !slices.Contains(flags, "-lwindivert") {
		t.Errorf("pkg-config says %q", flags)
	}
	must(t, "make", append(places, "uninstall")...)
	if got := files(t, stage); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}

// files returns the files below a folder, in order.
func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
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
