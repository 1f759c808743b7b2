//go:build linux

package main_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// needEvents skips where the kernel has no place for the programs of SOCKET and FLOW.
func needEvents(t *testing.T, h *lab.Host) {
	t.Helper()
	err := h.Do(func() error {
		d, err := divert.Open("false", divert.WithLayer(divert.LayerSocket), divert.WithFlags(divert.Sniff|divert.RecvOnly))
		if err == nil {
			err = d.Close()
		}
		return err
	})
	if errors.Is(err, divert.ErrNotSupported) && os.Getenv("DIVERT_NEED_KERNEL") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// awaitHandle waits until a handle of a layer is open on a host.
func awaitHandle(t *testing.T, h *lab.Host, layer divert.Layer) {
	t.Helper()
	err := h.Do(func() error {
		d, err := divert.Open("event == OPEN and layer == "+layer.String(), divert.WithLayer(divert.LayerReflect),
			divert.WithFlags(divert.Sniff|divert.RecvOnly))
		if err != nil {
			return err
		}
		defer d.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for _, err := range d.Packets(ctx) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatalf("no handle of layer %v is opened: %v", layer, err)
	}
}

// TestEvents runs testdata/events.c: the behaviour of the layers with events.
func TestEvents(t *testing.T) {
	for _, d := range []dialect{gccModern, cxxModern} {
		t.Run("REFLECT/"+d.name, func(t *testing.T) {
			runAt(t, host(t), exec.Command(compile(t, "events.c", d), "reflect"))
		})
		t.Run("SOCKET and FLOW/"+d.name, func(t *testing.T) {
			h := host(t)
			needEvents(t, h)
			runAt(t, h, exec.Command(compile(t, "events.c", d), "sockets"))
		})
	}
}
