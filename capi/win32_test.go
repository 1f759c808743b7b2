//go:build linux

package main_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// The compilers of programs that include windows.h.
var (
	win32C   = dialect{"C17 with windows.h", "gcc", []string{"-std=gnu17", "-Iwin32"}}
	win32Cxx = dialect{"C++17 with windows.h", "g++", []string{"-std=c++17", "-Iwin32", "-x", "c++"}}
)

// mingw compiles C programs for Windows, with Windows's own headers.
const mingw = "x86_64-w64-mingw32-gcc"

// needWin32 builds libwindivert-win32, once.
func needWin32(t *testing.T) {
	t.Helper()
	dir := library(t)
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip(err)
	}
	built.Lock()
	defer built.Unlock()
	must(t, "make", "-s", "win32", "OUT="+dir, "CFLAGS=-g -Wall -Wextra -Werror")
}

// compileForWindows compiles a program with mingw: the same source.
func compileForWindows(t *testing.T, source string) {
	t.Helper()
	if testing.Short() {
		t.Skip("the headers of Windows are long")
	}
	if _, err := exec.LookPath(mingw); err != nil {
		t.Skipf("%v (Debian: gcc-mingw-w64-x86-64)", err)
	}
	must(t, mingw, "-O1", "-Wall", "-Wextra", "-Werror", "-D_CRT_RAND_S", "-DWINDIVERTEXPORT=", "-I.", "-c", "-o",
		filepath.Join(t.TempDir(), "program.o"), source)
}

// TestWin32Headers compiles each header alone, before windivert.h and behind it, by each standard.
func TestWin32Headers(t *testing.T) {
	headers, err := filepath.Glob("win32/*.h")
	if err != nil || len(headers) < 10 {
		t.Fatalf("%q, %v", headers, err)
	}
	var first, last strings.Builder
	for _, h := range headers {
		if name := filepath.Base(h); name != "win32.h" { // the library's internal header
			fmt.Fprintf(&first, "#include <%s>\n", name)
			fmt.Fprintf(&last, "#include <%s>\n", name)
		}
	}
	for name, text := range map[string]string{
		"before": first.String() + "#include <windivert.h>\n", "behind": "#include <windivert.h>\n" + last.String(),
	} {
		for compiler, standards := range map[string][]string{"gcc": {"gnu99", "gnu17", "c99", "c17"}, "g++": {"gnu++98", "c++17", "c++20"}} {
			for _, standard := range standards {
				t.Run(name+"/"+standard, func(t *testing.T) {
					t.Parallel()
					if _, err := exec.LookPath(compiler); err != nil {
						t.Skip(err)
					}
					language := map[string]string{"gcc": "c", "g++": "c++"}[compiler]
					cmd := exec.Command(compiler, "-std="+standard, "-Wall", "-Wextra", "-Werror", "-Iwin32", "-I.",
						"-fsyntax-only", "-x", language, "-")
					if name == "behind" {
						cmd.Args = append(cmd.Args, "-D_DEFAULT_SOURCE") // as in pkg-config; in the headers it comes too late
					}
					cmd.Stdin = strings.NewReader(text)
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("%v\n%s", err, out)
					}
				})
			}
		}
	}
	t.Run("UNICODE", func(t *testing.T) {
		cmd := exec.Command("gcc", "-DUNICODE", "-Iwin32", "-fsyntax-only", "-x", "c", "-")
		cmd.Stdin = strings.NewReader("#include <windows.h>\n")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "compile without UNICODE") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// TestWin32Calls runs win32/testdata/calls.c: the calls behave like those of Windows. The same source is compiled for
// Windows.
func TestWin32Calls(t *testing.T) {
	needWin32(t)
	source := filepath.Join("win32", "testdata", "calls.c")
	for _, d := range []dialect{win32C, win32Cxx} {
		t.Run(d.name, func(t *testing.T) {
			program := compile(t, source, d)
			run(t, program, filepath.Base(program))
		})
	}
	t.Run("mingw", func(t *testing.T) { compileForWindows(t, source) })
	t.Run("control-C that nothing deals with", func(t *testing.T) {
		program := compile(t, source, win32C)
		out, err := exec.Command(program, filepath.Base(program), "end").CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
			t.Errorf("it ends with %v\n%s", err, out)
		}
	})
}

// TestWin32Install installs headers and library into a folder and removes them again.
func TestWin32Install(t *testing.T) {
	needWin32(t)
	if _, err := exec.LookPath("pkg-config"); err != nil {
		t.Skip(err)
	}
	root := t.TempDir()
	places := []string{"-s", "GO=false", "OUT=" + library(t), "PREFIX=" + root, "LDCONFIG=true"}
	must(t, "make", append(places, "install", "install-win32")...)
	t.Setenv("PKG_CONFIG_PATH", filepath.Join(root, "lib", "pkgconfig"))
	flags := strings.Fields(must(t, "pkg-config", "--cflags", "--libs", "windivert-win32"))
	program := filepath.Join(root, "calls.exe")
	args := append([]string{"-o", program, filepath.Join("win32", "testdata", "calls.c")}, flags...)
	must(t, "gcc", append(args, "-Wl,-rpath,"+filepath.Join(root, "lib"))...)
	must(t, program, "calls.exe")
	must(t, "rm", program)
	capitals := filepath.Join(root, "capitals.c")
	if err := os.WriteFile(capitals, []byte("#include <WinSock2.h>\n#include <Windows.h>\nDWORD n = MAX_PATH;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "gcc", append([]string{"-fsyntax-only", capitals}, flags...)...)
	must(t, "rm", capitals)
	must(t, "make", append(places, "uninstall-win32")...)
	left := files(t, root)
	if i := slices.IndexFunc(left, func(name string) bool { return strings.Contains(name, "win32") }); i >= 0 {
		t.Errorf("left behind: %q", left)
	}
	must(t, "make", append(places, "uninstall")...)
	if left := files(t, root); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
