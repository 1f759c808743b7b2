//go:build linux

package netns

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// here returns the inode of the calling thread's namespace.
func here(t *testing.T) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// current returns the namespace of a host of its own.
func current(t *testing.T) (*Namespace, *lab.Host) {
	t.Helper()
	h, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	var n *Namespace
	if err := h.Do(func() (err error) { n, err = Current(); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n, h
}

func TestDo(t *testing.T) {
	n, h := current(t)
	home := here(t)
	if n.Inode() == home || n.Inode() == 0 {
		t.Fatalf("the host's namespace is %d, that of the test %d", n.Inode(), home)
	}
	failed := errors.New("failed")
	t.Run("from another namespace", func(t *testing.T) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := n.Do(func() error {
			if got := here(t); got != n.Inode() {
				t.Errorf("in %d, want %d", got, n.Inode())
			}
			return failed
		})
		if err != failed {
			t.Errorf("%v, want the function's own error", err)
		}
		if got := here(t); got != home {
			t.Errorf("the caller is in %d, and was in %d", got, home)
		}
	})
	t.Run("from the same", func(t *testing.T) {
		err := h.Do(func() error {
			thread := unix.Gettid()
			err := n.Do(func() error {
				if unix.Gettid() != thread {
					t.Error("another thread")
				}
				return failed
			})
			if here(t) != n.Inode() {
				t.Error("the caller has left the namespace")
			}
			return err
		})
		if err != failed {
			t.Errorf("%v, want the function's own error", err)
		}
	})
	t.Run("one in the other", func(t *testing.T) {
		m, _ := current(t)
		err := n.Do(func() error {
			return m.Do(func() error {
				if got := here(t); got != m.Inode() {
					t.Errorf("in %d, want %d", got, m.Inode())
				}
				return n.Do(func() error {
					if got := here(t); got != n.Inode() {
						t.Errorf("in %d, want %d", got, n.Inode())
					}
					return nil
				})
			})
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				err := n.Do(func() error {
					if got := here(t); got != n.Inode() {
						t.Errorf("in %d, want %d", got, n.Inode())
					}
					return nil
				})
				if err != nil {
					t.Error(err)
				}
				if got := here(t); got != home {
					t.Errorf("the caller is in %d, and was in %d", got, home)
				}
			})
		}
		wg.Wait()
	})
}

func TestDoWithoutRights(t *testing.T) {
	n, h := current(t)
	ran := false
	err := lab.WithoutRights(func() error {
		// Not Do: it would visit from another thread, which has rights.
		return n.visit(func() error { ran = true; return nil })
	})
	if !errors.Is(err, os.ErrPermission) || ran {
		t.Errorf("%v, ran %t, want os.ErrPermission", err, ran)
	}
	// In its own namespace a program needs no rights.
	err = h.Do(func() error {
		return lab.WithoutRights(func() error { return n.Do(func() error { ran = true; return nil }) })
	})
	if err != nil || !ran {
		t.Errorf("in the same namespace: %v, ran %t", err, ran)
	}
}

func TestClosed(t *testing.T) {
	n, _ := current(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Do(func() error { t.Error("ran"); return nil }); !errors.Is(err, unix.EBADF) {
		t.Errorf("Do: %v, want EBADF", err)
	}
	if err := n.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Close: %v, want fs.ErrClosed", err)
	}
}
