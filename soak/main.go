//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// options are the values of the flags.
type options struct {
	duration time.Duration
	rate     int // datagrams per second, of all flows together
	workers  int
	seed     uint64
	report   string
}

func main() {
	if spec := os.Getenv(workerEnv); spec != "" {
		if err := work(spec); err != nil {
			fmt.Fprintln(os.Stderr, "soak: worker:", err)
			os.Exit(1)
		}
		return
	}
	if err := lab.Rootless(); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(2)
	}
	var o options
	flag.DurationVar(&o.duration, "for", 10*time.Minute, "how long")
	flag.IntVar(&o.rate, "rate", 2000, "datagrams a second")
	flag.IntVar(&o.workers, "workers", 4, "processes with handles")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of what happens by chance")
	flag.StringVar(&o.report, "o", "", "also write the report to a file")
	flag.Parse()
	if flag.NArg() > 0 || o.duration <= 0 || o.rate <= 0 || o.workers <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := run(ctx, o)
	if err == nil {
		err = r.write(o.report)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	if !r.fine() {
		os.Exit(1)
	}
}

// write prints the report, and also writes it to a file if one is named.
func (r *result) write(file string) error {
	w := io.Writer(os.Stdout)
	if file == "" {
		r.print(w)
		return nil
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	r.print(io.MultiWriter(w, f))
	return errors.Join(f.Close())
}
