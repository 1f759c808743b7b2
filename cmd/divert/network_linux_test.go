package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/probe"
)

// nobody is the ordinary user of these tests.
const nobody = 65534

// eachUser runs a test with a function that runs the command in its own process: as the user of the tests and, if that
// is root, as an ordinary user too.
func eachUser(t *testing.T, test func(t *testing.T, run func(args ...string) result)) {
	lab.Need(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("as this user", func(t *testing.T) {
		test(t, func(args ...string) result { return runProcess(t, exec.Command(self, args...)) })
	})
	t.Run("as an ordinary user", func(t *testing.T) {
		if !initialUserNamespace() || os.Getuid() != 0 {
			t.Skip("this user is an ordinary one already, or in a user namespace")
		}
		open := readableCopy(t, self)
		needUserNamespaces(t)
		test(t, func(args ...string) result {
			cmd := exec.Command(open, args...)
			cmd.Dir = filepath.Dir(open)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
			return runProcess(t, cmd)
		})
	})
}

// initialUserNamespace reports whether all users exist in this user namespace.
func initialUserNamespace() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}

// needUserNamespaces skips where ordinary users may not make user namespaces.
func needUserNamespaces(t *testing.T) {
	r, err := probe.Run()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Features {
		if f.Name == "user namespaces" && !f.OK {
			t.Skip(f.Error)
		}
	}
}

// readableCopy copies the test binary to a path where every user may run it.
func readableCopy(t *testing.T, path string) string {
	dir, err := os.MkdirTemp("", "divert")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	in, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	to := filepath.Join(dir, "divert")
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close(), os.Chmod(to, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return to
}

// runProcess runs the test binary as the command.
func runProcess(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errout strings.Builder
	cmd.Env = append(os.Environ(), commandVariable+"=1", "NO_COLOR=1")
	cmd.Stdout, cmd.Stderr = &out, &errout
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errout.String()}
}

func TestDemoCommand(t *testing.T) {
	eachUser(t, func(t *testing.T, run func(...string) result) {
		r := run("demo")
		if r.status != 0 || r.errout != "" || !strings.Contains(r.out, "checks passed") || strings.Contains(r.out, "FAILED") {
			t.Errorf("status %d\n%s%s", r.status, r.out, r.errout)
		}
		if r := run("demo", "now"); r.status != 2 {
			t.Errorf("with an argument: status %d, want 2\n%s", r.status, r.errout)
		}
	})
}

func TestLabCommand(t *testing.T) {
	version := runCommand(t, "", "version").out
	eachUser(t, func(t *testing.T, run func(...string) result) {
		rows := []struct {
			name   string
			args   []string
			status int
			out    string
		}{
			{"a command", []string{"lab", "--", "/bin/sh", "-c", "echo here; exit 5"}, 5, "here\n"},
			{"flags of the command", []string{"lab", "--at", "router", "/bin/echo", "-n", "--at"}, 0, "--at"},
			{"this program", []string{"lab", "--at", "router", "--", "divert", "version"}, 0, version},
			{"this program in a shell", []string{"lab", "--", "/bin/sh", "-c", "divert version"}, 0, version},
			{"no such place", []string{"lab", "--at", "moon"}, 2, ""},
			{"no such command", []string{"lab", "--", "/no/such/command"}, 1, ""},
		}
		for _, row := range rows {
			if r := run(row.args...); r.status != row.status || r.out != row.out {
				t.Errorf("%s: status %d, output %q, want %d and %q\n%s", row.name, r.status, r.out, row.status, row.out, r.errout)
			} else if r.status != 2 && !strings.Contains(r.errout, "It is no jail") {
				t.Errorf("%s: standard error does not say that a lab is no jail: %s", row.name, r.errout)
			}
		}
	})
}

func TestDoctorCommand(t *testing.T) {
	eachUser(t, func(t *testing.T, run func(...string) result) {
		r := run("doctor")
		if r.status != 0 || !strings.Contains(r.out, "FEATURE ") || !strings.Contains(r.out, "served by: ") {
			t.Errorf("status %d\n%s%s", r.status, r.out, r.errout)
		}
		r = run("doctor", "--json")
		var report struct {
			Engine   string
			Probed   string
			UID      int
			Features []struct{ Name string }
		}
		if err := json.Unmarshal([]byte(r.out), &report); err != nil || r.status != 0 {
			t.Fatalf("status %d, %v\n%s%s", r.status, err, r.out, r.errout)
		}
		if report.Engine == "" || len(report.Features) != strings.Count(r.out, `"name"`) || len(report.Features) == 0 {
			t.Errorf("report %+v", report)
		}
		if ordinary := strings.HasSuffix(t.Name(), "ordinary_user"); ordinary != (report.Probed == "rootless") || ordinary != (report.UID == nobody) {
			t.Errorf("probed %s as user %d", report.Probed, report.UID)
		}
	})
}
