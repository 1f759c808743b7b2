//go:build linux

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// childVariable makes a new process of the program a contender; its value is a job.
const childVariable = "DIVERT_BENCH_CONTENDER"

// job describes the work of a child process.
type job struct {
	Contender string
	Traffic   traffic
}

// usage is the child's answer to a request, one line of JSON. All counts are since its start.
type usage struct {
	CPU     time.Duration // user and system time of the process
	Handled uint64        // packets
	Missed  uint64        // lost copies
	Again   uint64        `json:",omitempty"` // with many flows: most packets of one flow received after its verdict
	Maps    uint64        `json:",omitempty"` // with many flows: memory of the eBPF maps in bytes, now

	Error       string `json:",omitempty"`
	Unavailable string `json:",omitempty"` // why the contender cannot run here
}

// runChild does the child's job, if this process is a child, and ends the process. It prints its usage once when it is
// ready and once for each line that it reads, and ends when its standard input closes.
func runChild() {
	text, isChild := os.LookupEnv(childVariable)
	if !isChild {
		return
	}
	out := json.NewEncoder(os.Stdout)
	if err := contend(text, os.Stdin, out); err != nil {
		_ = out.Encode(failure(err))
	}
	os.Exit(0)
}

// failure describes why a contender failed: missing rights or kernel features are not a failure of the measurement.
func failure(err error) usage {
	if errors.Is(err, os.ErrPermission) || errors.Is(err, errors.ErrUnsupported) {
		return usage{Unavailable: err.Error()}
	}
	return usage{Error: err.Error()}
}

// contend runs a contender until in ends.
func contend(text string, in io.Reader, out *json.Encoder) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	c := contenderNamed(j.Contender)
	if c == nil || c.open == nil {
		return fmt.Errorf("there is no contender %q here", j.Contender)
	}
	w, err := c.open(j.Traffic)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for more := true; more; more = lines.Scan() {
		u, err := measure(w, j.Traffic)
		if err == nil {
			err = out.Encode(u)
		}
		if err != nil {
			return errors.Join(err, w.close())
		}
	}
	return w.close()
}

func measure(w worker, t traffic) (u usage, err error) {
	if u.CPU, err = cpuTime(); err != nil {
		return u, err
	}
	if u.Handled, u.Missed, err = w.counts(); err != nil || t.Flows == 0 {
		return u, err
	}
	if h, is := w.(*handleWorker); is {
		u.Again = h.again.most.Load()
	}
	u.Maps, err = mapMemory()
	return u, err
}

// child is the bench's side of a contender's process.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// errUnavailable means that a contender cannot run here.
type errUnavailable struct{ reason string }

func (e errUnavailable) Error() string { return e.reason }

// command returns the command for a contender: this program as its child, or another one.
func command(j job) (*exec.Cmd, error) {
	if c := contenderNamed(j.Contender); c != nil && c.start != nil {
		return c.start(j.Traffic)
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	return cmd, nil
}

// startChild starts a contender on a host and waits until it is ready.
func startChild(h *lab.Host, j job) (*child, error) {
	cmd, err := command(j)
	if err != nil {
		return nil, err
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := h.Start(cmd); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, in: in, out: json.NewDecoder(out)}
	if _, err := c.usage(); err != nil {
		_ = c.end()
		return nil, err
	}
	return c, nil
}

// usage reads the child's answer.
func (c *child) usage() (u usage, err error) {
	switch err = c.out.Decode(&u); {
	case err != nil:
		return u, fmt.Errorf("the contender's process has ended: %w", err)
	case u.Unavailable != "":
		return u, errUnavailable{u.Unavailable}
	case u.Error != "":
		return u, errors.New(u.Error)
	}
	return u, nil
}

// ask asks the child for its usage.
func (c *child) ask() (usage, error) {
	if _, err := io.WriteString(c.in, "\n"); err != nil {
		return usage{}, err
	}
	return c.usage()
}

// childPatience limits the time for a contender's end.
const childPatience = 10 * time.Second

// end lets the child release its resources and waits for it.
func (c *child) end() error {
	errs := []error{c.in.Close()}
	kill := time.AfterFunc(childPatience, func() { _ = c.cmd.Process.Kill() })
	defer kill.Stop()
	if _, err := c.usage(); !errors.Is(err, io.EOF) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.cmd.Wait())...)
}
