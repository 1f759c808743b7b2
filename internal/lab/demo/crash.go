//go:build linux

package demo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// childVariable makes a new process of the program the child of the last step; its value is the filter.
const childVariable = "DIVERT_DEMO_CHILD"

// childReady is what the child prints when its handle is open.
const childReady = "diverting"

// runChild does the child's work, if this process is the child: it diverts packets and never receives any, like a
// program that hangs. It ends when its standard input closes, unless it is killed.
func runChild() (isChild bool, err error) {
	filter, isChild := os.LookupEnv(childVariable)
	if !isChild {
		return false, nil
	}
	h, err := divert.Open(filter)
	if err != nil {
		return true, err
	}
	defer h.Close()
	fmt.Println(childReady)
	_, err = io.Copy(io.Discard, os.Stdin)
	return true, err
}

// crash kills a program that diverts and holds packets.
func (d *demo) crash() error {
	const count = 5
	echo, err := d.B.Echo("udp", fmt.Sprintf(":%d", portCrash))
	if err != nil {
		return err
	}
	defer echo.Close()
	filter := fmt.Sprintf("outbound and udp.DstPort == %d", portCrash)
	d.printf("  Another process on A opens %q and hangs: it receives nothing and sends nothing on.\n", filter)
	child, err := d.startChild(filter)
	if err != nil {
		return err
	}
	defer child.kill()
	to := netip.AddrPortFrom(d.B.Addr4(), portCrash)
	stuck, err := lab.ExchangeUDP(d.ctx, d.A, to, lab.Exchange{Count: count, Wait: 10 * time.Millisecond})
	if err != nil {
		return err
	}
	check(&d.report, fmt.Sprintf("of %d datagrams none gets through", count), stuck.Echoed, 0)
	d.printf("  kill -9 %d\n", child.cmd.Process.Pid)
	child.kill()
	begin := time.Now()
	flowing, err := lab.ExchangeUDP(d.ctx, d.A, to, lab.Exchange{Count: count, Wait: d.patience})
	if err != nil {
		return err
	}
	took := time.Since(begin).Round(10 * time.Microsecond)
	check(&d.report, fmt.Sprintf("the next %d datagrams get through and are answered, within %v", count, took), flowing.Echoed, count)
	return d.clean()
}

// clean shows that the next handle removes the remains of a killed process, and leaves nothing itself.
func (d *demo) clean() error {
	left, err := d.A.NFTables()
	if err != nil {
		return err
	}
	check(&d.report, "its rules are still there and let everything through", slices.Contains(left, "inet divert"), true)
	h, err := d.show("udp", 0)
	if err != nil {
		return err
	}
	if err := h.Close(); err != nil {
		return err
	}
	if left, err = d.A.NFTables(); err != nil {
		return err
	}
	check(&d.report, "opened and closed: no trace of either is left in A's nftables", strings.Join(left, ", "), "")
	return nil
}

// child is a process of the last step.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	dead  bool
}

// startChild starts this program again on A and waits until its handle is open.
func (d *demo) startChild(filter string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), childVariable+"="+filter)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.A.Start(cmd); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, stdin: stdin}
	if text, err := bufio.NewReader(stdout).ReadString('\n'); strings.TrimSpace(text) != childReady {
		c.kill()
		return nil, errors.Join(fmt.Errorf("the process that diverts said %q", text), err)
	}
	return c, nil
}

// kill kills the process and waits for its end.
func (c *child) kill() {
	if c.dead {
		return
	}
	c.dead = true
	_ = c.cmd.Process.Kill() // fails only if it has ended
	_ = c.cmd.Wait()         // its error only says that it was killed
	c.stdin.Close()
}
