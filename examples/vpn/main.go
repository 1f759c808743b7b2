//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("vpn: ")
	verbose := flag.Bool("v", false, "tell of handshakes and the like")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: vpn [flags] FILE\nFILE is a configuration of WireGuard, as wg-quick(8) has it.")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, flag.Arg(0), *verbose); err != nil {
		stop()
		log.Fatal(err)
	}
}

// run runs the program until ctx ends.
func run(ctx context.Context, file string, verbose bool) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c, err := parseConfig(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	d, err := newTunnel(c)
	if err != nil {
		return err
	}
	level := device.LogLevelError
	if verbose {
		level = device.LogLevelVerbose
	}
	wg := device.NewDevice(d, conn.NewDefaultBind(), device.NewLogger(level, "vpn: "))
	defer wg.Close() // it closes d too
	if err := wg.IpcSet(c.uapi()); err != nil {
		return fmt.Errorf("%s: WireGuard refuses it: %w", file, err)
	}
	if err := wg.Up(); err != nil {
		return fmt.Errorf("UDP port %d: %w", c.port, err)
	}
	log.Printf("%v to %v, MTU %d (%s). Ctrl-C ends.", c.addresses, c.allowed(), c.mtu, d.handle.Description())
	select {
	case <-ctx.Done():
	case <-wg.Wait():
	}
	wg.Close()
	log.Print(d.summary())
	if ctx.Err() == nil {
		return d.failure()
	}
	return nil
}
