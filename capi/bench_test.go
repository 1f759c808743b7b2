//go:build linux

package main_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// BenchmarkPassthru sends bulk TCP through a handle in batches: with the C example on the C interface, and with a Go
// program that copies as much. SetBytes counts the bytes of the stream.
func BenchmarkPassthru(b *testing.B) {
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprintf("C/batch=%d", batch), func(b *testing.B) {
			program := compile(b, example("passthru.c"), gccModern)
			pair := lab.TwoHostsT(b, lab.LinkOptions{})
			cmd := exec.Command(program, "tcp", "1", fmt.Sprint(batch))
			if err := pair.A.Start(cmd); err != nil {
				b.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Signal(syscall.SIGTERM)
			time.Sleep(time.Second) // for the handle to open
			transfers(b, pair)
		})
		b.Run(fmt.Sprintf("Go/batch=%d", batch), func(b *testing.B) {
			pair := lab.TwoHostsT(b, lab.LinkOptions{})
			var d *divert.Handle
			if err := pair.A.Do(func() (err error) {
				d, err = divert.Open("tcp")
				return err
			}); err != nil {
				b.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				ps := make([]divert.Packet, batch)
				for {
					n, err := d.RecvBatch(ps)
					if err != nil {
						return
					}
					_, _ = d.SendBatch(ps[:n])
				}
			}()
			transfers(b, pair)
			d.Close()
			<-done
		})
	}
}

func transfers(b *testing.B, pair *lab.Pair) {
	const size = 64 << 20
	b.SetBytes(size)
	for b.Loop() {
		if _, err := lab.TransferTCP(b.Context(), pair.A, pair.B, netip.AddrPortFrom(pair.B.Addr4(), 0), size, 1); err != nil {
			b.Fatal(err)
		}
	}
}
