package windows

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opendivert/divert/internal/engine"
)

// TestInstall needs a system on which the driver is not running yet.
func TestInstall(t *testing.T) {
	path := testDriver(t)
	if d, err := openDevice(); err == nil {
		d.close()
		t.Skip("a driver runs already")
	}
	folder := filepath.Dir(path) // not t.TempDir: Wine 8 cannot remove Go's folders
	noDriver := filepath.Join(folder, "text.sys")
	if err := os.WriteFile(noDriver, []byte("no driver"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name      string
		noInstall bool
		path      string
		number    uint32 // 0: any
		is        error
		text      string
	}{
		{"installation is not wanted", true, path, errnoNoService, engine.ErrNotSupported, "NoInstall"},
		{"the file is missing", false, filepath.Join(folder, "missing", "WinDivert64.sys"), errnoFileNotFound, os.ErrNotExist, "WithDriver"},
		{"the folder has no file", false, os.Getenv("SystemRoot"), errnoFileNotFound, os.ErrNotExist, "WinDivert64.sys"},
		{"the file is no driver", false, noDriver, 0, nil, "start the driver"},
	} {
		t.Run(row.name, func(t *testing.T) {
			d, err := connect(row.noInstall, row.path)
			if err == nil {
				d.close()
				t.Fatal("it works")
			}
			var typed *Error
			if !errors.As(err, &typed) || numberOf(err) != typed.Code || row.number != 0 && typed.Code != row.number {
				t.Errorf("error %v, want number %d", err, row.number)
			}
			if row.is != nil && !errors.Is(err, row.is) {
				t.Errorf("%v is not %v", err, row.is)
			}
			if !strings.Contains(err.Error(), row.text) {
				t.Errorf("%q does not contain %q", err, row.text)
			}
			t.Log(err)
		})
	}
	t.Run("many at once, by the folder", func(t *testing.T) {
		t.Setenv(EnvDriver, folder)
		var done sync.WaitGroup
		for range 8 {
			done.Go(func() {
				d, err := connect(false, "")
				if err != nil {
					t.Error(err)
					return
				}
				d.close()
			})
		}
		done.Wait()
	})
	t.Run("it runs", func(t *testing.T) {
		d, err := connect(true, "")
		if err != nil {
			t.Fatal(err)
		}
		d.close()
	})
}
