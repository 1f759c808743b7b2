//go:build linux

package windows

import (
	"bytes"
	"context"
	"debug/pe"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wineTime is the time limit for anything under Wine.
const wineTime = 5 * time.Minute

// TestWine runs the tests that need Windows under Wine, those of this package with our own driver (testdata/driver),
// which speaks the protocol. The Wine is made for the test and removed afterwards. The command divert is among the
// programs run.
func TestWine(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	w := newWine(t)
	w.build(t)
	w.boot(t)
	for _, run := range []struct{ name, tests string }{
		{"installation", "^TestInstall$"}, // first, while no driver runs
		{"engine", "."},
	} {
		t.Run(run.name, func(t *testing.T) { w.tests(t, ".", "engine.test.exe", "-test.run="+run.tests) })
	}
	t.Run("library", w.library)
	t.Run("library of 32 bits", w.library32)
	for _, p := range portable {
		t.Run(p.dir, func(t *testing.T) {
			dir, program := filepath.Join("..", "..", p.dir), filepath.Base(p.dir)+".test.exe"
			w.gocmd(t, "test", "-c", "-o", filepath.Join(w.dir, program), "./"+dir)
			w.tests(t, dir, program, "-test.short", "-test.skip="+p.skip)
		})
	}
}

// library runs a C program with WinDivert.dll in another folder and the driver next to the library, as in the bindings of
// other languages.
func (w *wine) library(t *testing.T) {
	const compiler = "x86_64-w64-mingw32-gcc"
	folder := filepath.Join(w.dir, "library")
	dll, program := filepath.Join(folder, "WinDivert.dll"), filepath.Join(w.dir, "program", "library.exe")
	w.dll(t, dll, compiler, "amd64")
	driver, err := os.ReadFile(filepath.Join(w.dir, "WinDivert64.sys"))
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "WinDivert64.sys"), driver, 0o600)
	}
	if err == nil {
		err = os.Mkdir(filepath.Dir(program), 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command(compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-I../../capi", "-o", program, filepath.Join("testdata", "library.c"), dll)
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	with := *w
	with.env = append(with.env[:len(with.env):len(with.env)], "WINEPATH="+windowsPath(folder))
	if out, err := with.command(w.wine, filepath.Join(w.dir, "command", "divert.exe"), "clean"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := with.command(w.wine, program)
	if err != nil || !strings.HasSuffix(strings.TrimSpace(out), " steps") {
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// dll builds WinDivert.dll.
func (w *wine) dll(t *testing.T, path, compiler, arch string) {
	t.Helper()
	build := exec.Command("go", "build", "-buildmode=c-shared", "-o", path, "../../capi")
	build.Env = append(os.Environ(), "CC="+compiler, "GOOS=windows", "GOARCH="+arch, "CGO_ENABLED=1")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
}

// library32 builds WinDivert.dll for 32 bits, and a program with it, which cannot run here.
func (w *wine) library32(t *testing.T) {
	compiler, err := exec.LookPath("i686-w64-mingw32-gcc")
	if err != nil {
		t.Skip("there is no i686-w64-mingw32-gcc (Debian: gcc-mingw-w64-i686)")
	}
	dll, program := filepath.Join(w.dir, "library32", "WinDivert.dll"), filepath.Join(w.dir, "library32.exe")
	w.dll(t, dll, compiler, "386")
	if text, err := exec.Command(compiler, "-Wall", "-Wextra", "-Werror", "-O1", "-I../../capi", "-o", program,
		filepath.Join("testdata", "layout.c"), dll).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	f, err := pe.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	names, err := f.ImportedSymbols() // name:library; a 32-bit program expects the original's undecorated names
	if want := "WinDivertOpen:WinDivert.dll"; err != nil || !slices.Contains(names, want) {
		t.Errorf("the program imports %q, %v; it should have %s", names, err, want)
	}
}

// portable are the packages with tests that need no driver, and the tests that Wine 8 fails.
var portable = []struct{ dir, skip string }{
	{".", ""},
	{"packet", ""},
	{"filter", "^(TestFollow|TestLoadKeepsWhatThereWas)$"}, // as above
	{"diverttest", ""},
	{"internal/backlog", ""},
	{"internal/clienthello", ""},
	{"internal/quicinitial", ""},
	{"internal/capfile", ""},
	{"process", ""},
	{"impair", ""},
	{"redirect", ""},
	{"web", "^TestHostsFollow$"}, // as above
	{"firewall", "^(TestManual|TestAnswers)$|^TestDecide$/^(program_by_a_link|another_program|one_that_says_it_is_the_program|a_program_that_is_not_there|root)$"},                                           // programs and users of Linux, and modes of files
	{"cmd/divert", "^(TestCopyFile|TestArgumentsCannotCommandTerminals|TestTcpdumpsLetters|TestRotation|TestSetFiles?|TestExtcapInstall|TestManual|TestManualErrors|TestTraceErrors|TestLossesInCaptures)$"}, // the folder of the test cannot be removed
}

// tests runs a test program in a folder.
func (w *wine) tests(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	args = append([]string{filepath.Join(w.dir, program), "-test.v", "-test.timeout=4m"}, args...)
	out, err := w.commandIn(dir, w.wine, args...)
	if err != nil || !strings.HasSuffix(strings.TrimSpace(out), "PASS") {
		t.Errorf("%v\n%s", err, failures(out))
	}
	passed := strings.Count(out, "\n--- PASS: Test")
	if passed == 0 {
		t.Error("no test ran")
	}
	t.Logf("%d tests passed", passed)
}

// failures returns the error lines of a test's output.
func failures(out string) string {
	var kept []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "=== RUN") && !strings.Contains(line, "--- PASS") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// wine is a Wine with all its programs, in a folder of its own.
type wine struct {
	dir          string
	wine, server string // programs
	env          []string
}

// newWine finds the programs that the test needs, or skips it.
func newWine(t *testing.T) *wine {
	t.Helper()
	w := &wine{dir: t.TempDir()}
	w.wine = need(t, "wine64", "/usr/lib/wine/wine64", "wine")
	w.server = need(t, "wineserver", "/usr/lib/wine/wineserver64", "/usr/lib/wine/wineserver")
	need(t, "x86_64-w64-mingw32-gcc")
	need(t, "x86_64-w64-mingw32-dlltool")
	w.env = append(os.Environ(),
		"WINEPREFIX="+filepath.Join(w.dir, "prefix"), "WINEARCH=win64", "WINEDEBUG=-all",
		"WINEDLLOVERRIDES=mscoree,mshtml=;winemenubuilder.exe=d",
		envTestDriver+"="+windowsPath(filepath.Join(w.dir, "WinDivert64.sys")),
		envCommand+"="+windowsPath(filepath.Join(w.dir, "command", "divert.exe")), // not next to the driver
		// Wine passes large requests to its server through a pipe, and does not survive a signal in the middle.
		"GODEBUG=asyncpreemptoff=1",
	)
	return w
}

// need returns the first of the programs that exists.
func need(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skipf("there is no %s (Debian: gcc-mingw-w64-x86-64 wine64 wine)", names[0])
	return ""
}

// windowsPath returns a path as Wine shows it.
func windowsPath(path string) string { return "Z:" + strings.ReplaceAll(path, "/", `\`) }

// build builds the test driver, the library that Go needs and Wine 8 lacks, and the tests.
func (w *wine) build(t *testing.T) {
	t.Helper()
	in := func(name string) string {
		path := filepath.Join("testdata", "driver", name)
		if !exists(path) { // asking also makes a cached result depend on the file
			t.Fatalf("there is no %s", path)
		}
		return path
	}
	out := func(name string) string { return filepath.Join(w.dir, name) }
	compiler := "x86_64-w64-mingw32-gcc"
	for _, args := range [][]string{
		{"x86_64-w64-mingw32-dlltool", "-d", in("kernelbase.def"), "-l", out("libkernelbase.a")},
		slices.Concat([]string{compiler, "-Wall", "-Werror", "-O1", "-I" + driverHeaders(t, compiler), "-nostdlib",
			"-Wl,--subsystem,native", "-Wl,--entry,DriverEntry", "-o", out("WinDivert64.sys")}, driverSources(in),
			[]string{"-L" + w.dir, "-lntoskrnl", "-lkernelbase"}),
		{compiler, "-Wall", "-Werror", "-O1", "-shared", "-nostdlib", "-Wl,--entry,DllMainCRTStartup",
			"-o", out("bcryptprimitives.dll"), in("prng.c"), "-ladvapi32"},
	} {
		if text, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, text)
		}
	}
	w.gocmd(t, "test", "-c", "-o", out("engine.test.exe"), ".")
	w.gocmd(t, "build", "-o", out("command/divert.exe"), "../../cmd/divert")
}

// driverSources returns the source files of the test driver.
func driverSources(in func(string) string) []string {
	in("model.h")
	var all []string
	for _, name := range []string{"driver.c", "client.c", "queue.c", "stack.c", "filter.c", "reflect.c", "tests.c"} {
		all = append(all, in(name))
	}
	return all
}

// gocmd runs the go command for Windows.
func (w *wine) gocmd(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, text)
	}
}

// driverHeaders returns the folder of the headers for drivers: "ddk", in one of the compiler's folders.
func driverHeaders(t *testing.T, compiler string) string {
	t.Helper()
	text, err := exec.Command(compiler, "-E", "-v", "-x", "c", "/dev/null").CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", compiler, err, text)
	}
	for line := range strings.Lines(string(text)) {
		if folder := filepath.Join(strings.TrimSpace(line), "ddk"); strings.HasPrefix(line, " /") && exists(folder) {
			return folder
		}
	}
	t.Skip("the compiler has no headers for drivers")
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// boot makes the Wine, and ends it with the test.
func (w *wine) boot(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if out, err := w.command(w.server, "-k"); err != nil {
			t.Logf("end Wine: %v\n%s", err, out)
		}
		if out, err := w.command(w.server, "-w"); err != nil {
			t.Errorf("Wine does not end: %v\n%s", err, out)
		}
	})
	if out, err := w.command(w.wine, "wineboot", "-i"); err != nil {
		t.Fatalf("wineboot: %v\n%s", err, out)
	}
	if out, err := w.command(w.server, "-w"); err != nil {
		t.Fatalf("wineboot: %v\n%s", err, out)
	}
	library, err := os.ReadFile(filepath.Join(w.dir, "bcryptprimitives.dll"))
	if err == nil {
		err = os.WriteFile(filepath.Join(w.dir, "prefix/drive_c/windows/system32/bcryptprimitives.dll"), library, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// command runs a program; see commandIn.
func (w *wine) command(name string, args ...string) (string, error) {
	return w.commandIn("", name, args...)
}

// commandIn runs a program in a folder, with a time limit for it and its children, and returns its output. The output
// goes to a file: the processes that Wine leaves in the background would hold a pipe open.
func (w *wine) commandIn(dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), wineTime)
	defer cancel()
	file, err := os.CreateTemp(w.dir, "output")
	if err != nil {
		return "", err
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, w.env, file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	err = cmd.Run()
	out, readErr := os.ReadFile(file.Name())
	if err == nil {
		err = readErr
	}
	return string(bytes.ReplaceAll(out, []byte("\r\n"), []byte("\n"))), err
}
