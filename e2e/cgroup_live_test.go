//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// asIPNetnsExec gives the process the file systems that `ip netns exec` gives it (iproute2, lib/namespace.c), and goes
// on as another child. The process must have its own mount namespace.
func asIPNetnsExec() error {
	if err := unix.Mount("", "/", "none", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /sys: %w", err)
	}
	if err := unix.Mount("test", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if bytes.Contains(mounts, []byte(" - cgroup2 ")) {
		return errors.New("there is a cgroup2 file system still")
	}
	runtime.LockOSThread()
	if os.Getenv("DIVERT_TEST_DROP") != "" {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
			return fmt.Errorf("drop CAP_SYS_ADMIN: %w", err)
		}
	}
	if err := os.Setenv(childEnv, "seesSockets"); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", []string{"child"}, os.Environ())
}

// seesSockets opens handles that need the cgroup hierarchy, and waits for a flow.
func seesSockets() error {
	open := func(layer divert.Layer, opts ...divert.Option) (*divert.Handle, error) {
		d, err := divert.Open("true", append(opts, divert.WithLayer(layer), divert.WithFlags(divert.Sniff|divert.RecvOnly))...)
		if err == nil && layer != divert.LayerFlow {
			err = d.Close()
		}
		return d, err
	}
	if _, err := open(divert.LayerSocket); err != nil {
		return err
	}
	if _, err := open(divert.LayerNetwork, divert.WithProcessID()); err != nil {
		return err
	}
	d, err := open(divert.LayerFlow)
	if err != nil {
		return err
	}
	defer d.Close()
	if e := d.Description(); strings.Contains(e, "not seen") {
		return errors.New(e)
	}
	c, err := net.Dial("udp4", "127.0.0.1:9")
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for p, err := range d.Packets(ctx) {
		if err != nil {
			return err
		}
		if f := p.Addr.Flow(); p.Addr.Event == packet.EventFlowEstablished && f.RemotePort == 9 && int(f.ProcessID) == os.Getpid() {
			fmt.Println("seen")
			return nil
		}
	}
	return errors.New("no flow")
}

func init() {
	children["asIPNetnsExec"] = asIPNetnsExec
	children["seesSockets"] = seesSockets
}

// TestSocketsWithoutMountedCgroups opens handles of the layers SOCKET and FLOW, and one for processes, in the
// surroundings of `ip netns exec`: there is no cgroup2 file system.
func TestSocketsWithoutMountedCgroups(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts and programs need root")
	}
	host, err := lab.NewT(t).AddHost("A")
	if err != nil {
		t.Fatal(err)
	}
	needEngine(t, host, divert.EngineKernel)
	for _, drop := range []bool{false, true} {
		t.Run(fmt.Sprintf("without CAP_SYS_ADMIN %v", drop), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/proc/self/exe")
			cmd.Env = append(os.Environ(), childEnv+"=asIPNetnsExec")
			if drop {
				cmd.Env = append(cmd.Env, "DIVERT_TEST_DROP=1")
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := host.Exec(cmd)
			text := out.String()
			switch {
			case drop && (err == nil || !strings.Contains(text, "mount -t cgroup2 none /run/cgroup2")):
				t.Errorf("no remedy: %v: %s", err, text)
			case !drop && (err != nil || text != "seen\n"):
				t.Errorf("%v: %s", err, text)
			}
		})
	}
}
