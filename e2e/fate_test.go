//go:build linux

package e2e_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// keeper is an open handle in another process, which receives nothing.
type keeper struct {
	Filter string
	Layer  divert.Layer
	Flags  divert.Flag
	Engine divert.Engine
	Length int // of its queue, 0 for the default
}

func init() {
	children["keeper"] = func() error {
		var k keeper
		if err := json.Unmarshal([]byte(os.Getenv("DIVERT_TEST_KEEPER")), &k); err != nil {
			return err
		}
		opts := []divert.Option{divert.WithLayer(k.Layer), divert.WithFlags(k.Flags), divert.WithEngine(k.Engine), divert.WithQueueTime(16 * time.Second)}
		if k.Length != 0 {
			opts = append(opts, divert.WithQueueLength(k.Length))
		}
		d, err := divert.Open(k.Filter, opts...)
		if err != nil {
			return err
		}
		fmt.Println("open")
		_, err = io.Copy(io.Discard, os.Stdin)
		return errors.Join(err, d.Close())
	}
}

// keep starts a keeper as an ordinary user with the rights that the manual names. It skips where the system cannot
// serve the handle.
func keep(t *testing.T, h *lab.Host, k keeper) *exec.Cmd {
	t.Helper()
	spec, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	var complaint strings.Builder
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=keeper", "DIVERT_TEST_KEEPER="+string(spec))
	cmd.SysProcAttr = asNobody(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_BPF, unix.CAP_DAC_READ_SEARCH, unix.CAP_PERFMON)
	cmd.Stderr = &complaint
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		in.Close()
		cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		cmd.Wait()
		if strings.Contains(complaint.String(), divert.ErrNotSupported.Error()) && os.Getenv("DIVERT_NEED_KERNEL") == "" {
			t.Skip(&complaint)
		}
		t.Fatal(&complaint)
	}
	return cmd
}

// pause stops a process and waits until it has stopped.
func pause(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(cmd.Process.Pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatal(err, status)
	}
}

// TestPacketsWhileTheProgramIsStoppedAndKilled: the fate of matching and other packets while the process of a handle is
// stopped, and after its end.
func TestPacketsWhileTheProgramIsStoppedAndKilled(t *testing.T) {
	needUsers(t)
	t.Parallel()
	const passes, waits, dropped = "passes", "waits", "is dropped"
	// nftables rules can test the port but not the bytes: with the interpreter engine it decides on the bytes.
	const byPort, byBytes = "udp.DstPort == %d and outbound", "packet16[22] == %d and outbound and udp"
	for _, row := range []struct {
		engine        int // of engines
		flags         divert.Flag
		filter        string // with the port of matching packets
		match, others string // while it is stopped
	}{
		{0, 0, byPort, waits, passes},
		{0, divert.RecvOnly, byPort, waits, passes},
		{0, divert.Drop, byPort, dropped, passes},
		{0, divert.Sniff, byPort, passes, passes},
		{0, divert.SendOnly, byPort, waits, passes},
		{1, 0, byPort, waits, passes},
		{1, divert.Drop, byPort, waits, passes},
		{1, divert.Sniff, byPort, passes, passes},
		{1, 0, byBytes, waits, waits},
	} {
		e := engines[row.engine]
		t.Run(fmt.Sprintf("%s/%v/%s", e.name, row.flags, strings.Fields(row.filter)[0]), func(t *testing.T) {
			t.Parallel()
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			needEngine(t, pair.A, e.engine)
			matching, expectMatching := receiver(t, pair.B, pair.B.Addr4())
			other, expectOther := receiver(t, pair.B, pair.B.Addr4())
			toMatching, toOther := dialUDP(t, pair.A, matching.LocalAddr()), dialUDP(t, pair.A, other.LocalAddr())
			cmd := keep(t, pair.A, keeper{Filter: fmt.Sprintf(row.filter, addrPort(matching).Port()), Flags: row.flags, Engine: e.engine})
			pause(t, cmd)
			waiting := 0
			for _, p := range []struct {
				fate   string
				conn   net.Conn
				expect func(...string)
			}{{row.match, toMatching, expectMatching}, {row.others, toOther, expectOther}} {
				fmt.Fprint(p.conn, "stopped")
				switch p.fate {
				case passes:
					p.expect("stopped")
				case waits:
					waiting++
					p.expect()
				default:
					p.expect()
				}
			}
			// With the interpreter, packets of the host itself may wait too: rules do not look behind extension headers.
			if n := queuedPackets(t, pair.A); n < waiting || n > waiting && row.engine == 0 {
				t.Errorf("%d packets wait, want %d", n, waiting)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			fmt.Fprint(toMatching, "killed")
			fmt.Fprint(toOther, "killed")
			expectMatching("killed")
			expectOther("killed")
		})
	}
}

// TestRefusalsWhileTheProgramIsStoppedAndKilled: sockets are refused as long as the process lives, even stopped.
func TestRefusalsWhileTheProgramIsStoppedAndKilled(t *testing.T) {
	needUsers(t)
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	openEvents(t, pair.A, divert.LayerSocket, "false", divert.Sniff) // or skip
	cmd := keep(t, pair.A, keeper{Filter: "event == CONNECT and remotePort == 9", Layer: divert.LayerSocket, Flags: divert.RecvOnly})
	pause(t, cmd)
	connect := func() error {
		c, err := pair.A.Dial(t.Context(), "udp", net.JoinHostPort(pair.B.Addr4().String(), "9"))
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := connect(); !errors.Is(err, unix.EACCES) {
		t.Errorf("while it is stopped: %v, want EACCES", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	// The kernel removes programs after the process.
	err := connect()
	for start := time.Now(); err != nil && time.Since(start) < 10*time.Second; err = connect() {
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		t.Errorf("when it is killed: %v", err)
	}
}

// TestRefusalsWhileTheQueueIsFull: an ordinary user causes more events than a handle has room for, and every operation
// is still refused.
func TestRefusalsWhileTheQueueIsFull(t *testing.T) {
	needUsers(t)
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	openEvents(t, pair.A, divert.LayerSocket, "false", divert.Sniff) // or skip
	watch := openEvents(t, pair.A, divert.LayerSocket, "event == CONNECT and remotePort == 10", divert.Sniff, divert.WithQueueLength(32))
	cmd := keep(t, pair.A, keeper{Filter: "event == CONNECT and remotePort == 9", Layer: divert.LayerSocket, Flags: divert.RecvOnly, Length: 32})
	pause(t, cmd)
	for _, port := range []string{"9", "10"} {
		to := net.JoinHostPort(pair.B.Addr4().String(), port)
		out, _ := asStranger(t, pair.A, asNobody(), "connects", to)
		if want := map[string]string{"9": "0", "10": strconv.Itoa(manyConnects)}[port]; out != want {
			t.Errorf("to port %s: %s of %d succeed, want %s", port, out, manyConnects, want)
		}
	}
	if s := quiet(t, watch); s.Matched != manyConnects || s.DroppedFull == 0 {
		t.Errorf("the handle that nobody receives from: %+v", s)
	}
}

// manyConnects exceeds the ring of a handle with a short queue.
const manyConnects = 30000

func init() {
	children["connects"] = func() error {
		to, err := netip.ParseAddrPort(os.Getenv("DIVERT_TEST_TARGET"))
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		succeed := 0
		for range manyConnects {
			switch err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}); err {
			case nil:
				succeed++
			case unix.EACCES:
			default:
				return err
			}
		}
		fmt.Print(succeed)
		return nil
	}
}
