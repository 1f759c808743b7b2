//go:build linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// stoppedQueue is the length of the queue whose reader is stopped.
const stoppedQueue = 1000

func init() {
	children["carry"] = func() error {
		engine, err := strconv.Atoi(os.Getenv("DIVERT_TEST_ENGINE"))
		if err != nil {
			return err
		}
		opts := []divert.Option{divert.WithEngine(divert.Engine(engine)), divert.WithQueueLength(stoppedQueue),
			divert.WithQueueTime(16 * time.Second)}
		if os.Getenv("DIVERT_TEST_FAIL_OPEN") != "" {
			opts = append(opts, divert.WithFailOpen())
		}
		if d, err := time.ParseDuration(os.Getenv("DIVERT_TEST_PASS_ON_HANG")); err == nil {
			opts = append(opts, divert.WithPassOnHang(d))
		}
		if d, err := time.ParseDuration(os.Getenv("DIVERT_TEST_DROP_ON_HANG")); err == nil {
			opts = append(opts, divert.WithDropOnHang(d))
		}
		d, err := divert.Open(os.Getenv("DIVERT_TEST_FILTER"), opts...)
		if err != nil {
			return err
		}
		fmt.Println("open")
		go func() {
			io.Copy(io.Discard, os.Stdin)
			d.Shutdown(divert.ShutdownRecv)
		}()
		for ps := make([]divert.Packet, 64); ; {
			n, err := d.RecvBatch(ps)
			if err == io.EOF {
				break
			}
			if err == nil {
				_, err = d.AcceptBatch(ps[:n])
			}
			if err != nil {
				return err
			}
		}
		s, err := d.Stats()
		return errors.Join(err, json.NewEncoder(os.Stdout).Encode(s), d.Close())
	}
}

// carrier is a child process that carries traffic.
type carrier struct{ *talkingChild }

// startCarrier starts one on a host, with a filter that the kernel decides.
func startCarrier(t *testing.T, h *lab.Host, filter string, env ...string) *carrier {
	t.Helper()
	return &carrier{startTalking(t, h, append(env, childEnv+"=carry", "DIVERT_TEST_FILTER="+filter, "DIVERT_TEST_ENGINE="+strconv.Itoa(int(divert.EngineKernel)))...)}
}

// signal sends a signal. After SIGSTOP it waits until the process has stopped.
func (c *carrier) signal(t *testing.T, s os.Signal) {
	t.Helper()
	err := c.cmd.Process.Signal(s)
	if err == nil && s == syscall.SIGSTOP {
		err = unix.Waitid(unix.P_PID, c.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// end makes the child carry the waiting packets, waits for its end, and returns its counters.
func (c *carrier) end(t *testing.T) (s divert.Stats) {
	t.Helper()
	c.in.Close()
	if err := errors.Join(json.NewDecoder(c.lines).Decode(&s), c.cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestReaderStopped stops a process that carries traffic, by SIGSTOP. Other traffic and other handles notice nothing;
// the number of waiting packets is bounded, losses are counted, and a handle that fails open passes the packets beyond
// its limit.
func TestReaderStopped(t *testing.T) {
	t.Parallel()
	for _, open := range []string{"", "fail open"} {
		t.Run(map[string]string{"": "fail closed"}[open]+open, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			needEngine(t, pair.B, divert.EngineKernel)
			f := startFlood(t, pair.A, pair.B, pair.B.Addr4(), 2, 8000, 4000)
			filter := fmt.Sprintf("inbound and udp.DstPort == %d", f.port())
			c := startCarrier(t, pair.B, filter, "DIVERT_TEST_FAIL_OPEN="+open)
			other := echoAt(t, pair.B, "udp", pair.B.Addr4())
			above := openAt(t, pair.B, fmt.Sprintf("udp and udp.DstPort == %d", other.Addr().Port()), divert.WithPriority(1))
			below := openAt(t, pair.B, fmt.Sprintf("udp and udp.SrcPort == %d", other.Addr().Port()), divert.WithPriority(-1))
			passthru(t, above)
			passthru(t, below)
			begun := f.arrived()
			eventually(t, "traffic passes the process", func() bool { return f.arrived() > begun+1000 })
			c.signal(t, syscall.SIGSTOP)
			most := 0
			for end := time.Now().Add(map[bool]time.Duration{false: 2 * time.Second, true: 10 * time.Second}[long()]); time.Now().Before(end); {
				if r := exchange(t, pair.A, other.Addr(), lab.Exchange{Count: 20}); r.Echoed != 20 {
					t.Errorf("other traffic: %+v", r)
				}
				most = max(most, queuedPackets(t, pair.B))
				time.Sleep(20 * time.Millisecond)
			}
			c.signal(t, syscall.SIGCONT)
			begun = f.arrived()
			eventually(t, "traffic passes the process again", func() bool { return f.arrived() > begun+1000 })
			sum := f.finish()
			s := c.end(t)
			t.Logf("%d sent, %d lost, at most %d waited; %+v", sum.sent, sum.lost, most, s)
			balanced(t, s)
			if most < stoppedQueue || most > 2*stoppedQueue+100 {
				t.Errorf("%d packets waited in the kernel, want %d to %d", most, stoppedQueue, 2*stoppedQueue)
			}
			if dropped := s.DroppedFull + s.DroppedOld + s.DroppedLong + s.Lost; uint64(sum.lost) != dropped {
				t.Errorf("%d lost, %d counted", sum.lost, dropped)
			}
			if open == "" && (s.DroppedFull == 0 || s.Passed != 0) || open != "" && (s.DroppedFull != 0 || s.Passed == 0) {
				t.Errorf("%s: %+v", open, s)
			}
		})
	}
}

// queuedPackets returns the number of packets waiting in all queues of a host.
func queuedPackets(t testing.TB, h *lab.Host) (n int) {
	t.Helper()
	queues, err := h.PacketQueues()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queues {
		n += q.Waiting
	}
	return n
}
