//go:build linux

package shell

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// hold makes a binDir, prints its path and waits to be killed.
func hold() error {
	d, err := newBinDir("/bin/true")
	if err != nil {
		return err
	}
	fmt.Println(d.path)
	time.Sleep(time.Minute)
	return d.remove()
}

// TestBinDirOfAKilledLab: the directory of a killed lab is removed when the next one starts. Directories of running
// labs, and others that only look like a binDir, stay.
func TestBinDirOfAKilledLab(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	running, err := newBinDir("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	full, elsewhere := filepath.Join(temp, prefix+"full"), filepath.Join(temp, "elsewhere")
	for _, dir := range []string{full, filepath.Join(full, "of somebody"), elsewhere} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(elsewhere, filepath.Join(temp, prefix+"link")); err != nil {
		t.Fatal(err)
	}

	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	killed := exec.Command(self)
	killed.Env = append(os.Environ(), jobVariable+"=hold")
	out, err := killed.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	path, err := bufio.NewReader(out).ReadString('\n')
	path = strings.TrimSpace(path)
	_ = killed.Process.Kill()
	_ = killed.Wait() // it was killed
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the directory of the killed process: %v", err)
	}

	next, err := newBinDir("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", path, err)
	}
	for _, d := range []*binDir{running, next} {
		if to, err := os.Readlink(filepath.Join(d.path, "divert")); err != nil || to != "/bin/true" {
			t.Errorf("divert is %q, %v", to, err)
		}
		if err := d.remove(); err != nil {
			t.Error(err)
		}
	}
	entries, err := os.ReadDir(temp)
	if err != nil || len(entries) != 3 {
		t.Errorf("left are %v, %v, want the three that are no such directories", entries, err)
	}
}

// TestBinDirsAtOnce makes and removes directories while others look for leftovers.
func TestBinDirsAtOnce(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	done := make(chan error)
	const makers = 4
	for range makers {
		go func() (err error) {
			defer func() { done <- err }()
			for range 50 {
				d, err := newBinDir("/bin/true")
				if err != nil {
					return err
				}
				if _, err := os.Readlink(filepath.Join(d.path, "divert")); err != nil {
					return err
				}
				if err := d.remove(); err != nil {
					return err
				}
			}
			return nil
		}()
	}
	for range makers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
