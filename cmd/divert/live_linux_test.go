package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	kernelprocesses "github.com/opendivert/divert/internal/linux/processes"
)

// commandVariable makes the test binary act as the command: for runs in their own process.
const commandVariable = "DIVERT_TEST_COMMAND"

func TestMain(m *testing.M) {
	if to := os.Getenv(sendVariable); to != "" {
		sendOne(to)
	}
	if pid := os.Getenv(forgeVariable); pid != "" {
		forgeAll(pid)
	}
	if at := os.Getenv(relayVariable); at != "" {
		relayHeaders(at)
	}
	if to := os.Getenv(speakVariable); to != "" {
		speak(to)
	}
	if url := os.Getenv(fetchVariable); url != "" {
		fetch(url)
	}
	if os.Getenv(commandVariable) != "" {
		main()
	}
	lab.Main(m)
}

// running is the command in its own process on a host.
type running struct {
	cmd    *exec.Cmd
	out    io.ReadCloser
	begun  strings.Builder // output that lines has read
	errout *syncBuffer
	ended  bool
}

// syncBuffer is a buffer that one goroutine fills while another reads it.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start starts the command on a host and waits until it reports that its handle is open.
func start(t *testing.T, h *lab.Host, args ...string) *running {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startProgram(t, h, exe, args...)
}

// startProgram starts the command from another executable.
func startProgram(t *testing.T, h *lab.Host, exe string, args ...string) *running {
	t.Helper()
	var err error
	p := &running{cmd: exec.Command(exe, args...), errout: &syncBuffer{}}
	p.cmd.Env = append(os.Environ(), commandVariable+"=1")
	p.cmd.Stderr = p.errout
	if p.out, err = p.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !p.ended { // the test was skipped or has failed
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait()
		}
	})
	begun := time.Now()
	for !strings.Contains(p.errout.String(), "\n") {
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("%v did not start: %s", args, p.errout)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return p
}

// lines waits until the command has printed n more lines.
func (p *running) lines(t *testing.T, n int) {
	t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	for b := make([]byte, 1); n > 0; { // and not a byte of the next line
		if _, err := p.out.Read(b); err != nil {
			t.Fatalf("%d more lines expected: %v\n%.300s\n%.300s", n, err, &p.begun, p.errout)
		}
		p.begun.Write(b)
		if b[0] == '\n' {
			n--
		}
	}
}

// end sends a signal, waits for the end, and returns the output and the exit status.
func (p *running) end(t *testing.T, s os.Signal) (out string, status int) {
	t.Helper()
	if s != nil {
		if err := p.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	timer := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer timer.Stop()
	b, err := io.ReadAll(p.out)
	if err != nil {
		t.Fatal(err)
	}
	err = p.cmd.Wait()
	p.ended = true
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.begun.String() + string(b), p.cmd.ProcessState.ExitCode()
}

// hosts makes two hosts and an echo server on the second one.
func hosts(t *testing.T) (pair *lab.Pair, echo netip.AddrPort) {
	t.Helper()
	pair = lab.TwoHostsT(t, lab.LinkOptions{})
	e, err := pair.B.Echo("udp", netip.AddrPortFrom(pair.B.Addr4(), 7).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return pair, e.Addr()
}

// exchange sends datagrams to the echo server and returns how many came back.
func exchange(t *testing.T, from *lab.Host, to netip.AddrPort, count int, wait time.Duration) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := lab.ExchangeUDP(ctx, from, to, lab.Exchange{Count: count, Wait: wait})
	if err != nil {
		t.Fatal(err)
	}
	return r.Echoed
}

// decided waits until no packet of the host waits for a verdict: the program has dealt with all that were sent.
func decided(t *testing.T, h *lab.Host) {
	t.Helper()
	for begun := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		queues, err := h.PacketQueues()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(queues, func(q lab.PacketQueue) bool { return q.Waiting != 0 }) {
			return
		}
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("packets wait: %+v", queues)
		}
	}
}

// eachEngine runs a test with either engine. The kernel's is not available everywhere.
func eachEngine(t *testing.T, f func(t *testing.T, engine string)) {
	for _, engine := range []string{"auto", "interpreter"} {
		t.Run(engine, func(t *testing.T) { f(t, engine) })
	}
}

func TestDumpLive(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		pair, echo := hosts(t)
		p := start(t, pair.A, "dump", "--engine", engine, "-c", "4", "udp.DstPort == 7 or udp.SrcPort == 7")
		if n := exchange(t, pair.A, echo, 3, 5*time.Second); n != 3 {
			t.Errorf("%d of 3 datagrams came back", n)
		}
		out, status := p.end(t, nil)
		if status != exitOK {
			t.Errorf("status %d", status)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 4 {
			t.Fatalf("%d lines:\n%s", len(lines), out)
		}
		end := ": UDP, length 64"
		if strings.Contains(p.errout.String(), "(eBPF") && needProcesses() == nil {
			end += fmt.Sprintf(" [%s %d]", filepath.Base(os.Args[0]), os.Getpid())
		}
		for i, arrow := range []string{" -> IP 10.", " <- IP 10.", " -> IP 10.", " <- IP 10."} {
			if !strings.Contains(lines[i], "eth0"+arrow) || !strings.HasSuffix(lines[i], end) {
				t.Errorf("line %d is %s", i, lines[i])
			}
		}
		when, err := time.Parse(shortTime, strings.Fields(lines[0])[0])
		if err != nil {
			t.Fatal(err)
		}
		// Only the time of day is printed; midnight may lie between the two times.
		if d := (timeOfDay(time.Now()) - timeOfDay(when) + 24*time.Hour) % (24 * time.Hour); d > time.Minute {
			t.Errorf("captured %v ago", d)
		}
		if s := p.errout.String(); !strings.Contains(s, " matched, 4 received in ") || strings.Count(s, "\n") != 2 {
			t.Errorf("standard error: %s", s)
		}
	})
}

// TestDumpSnapshots prints and writes the beginnings of packets, with their full lengths.
func TestDumpSnapshots(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		pair, echo := hosts(t)
		p := start(t, pair.A, "dump", "--engine", engine, "-s", "64", "-c", "1", "--json", "-x", "outbound and udp.DstPort == 7")
		written := filepath.Join(t.TempDir(), "written.pcapng")
		w := start(t, pair.A, "dump", "--engine", engine, "-s", "64", "-c", "1", "-w", written, "outbound and udp.DstPort == 7")
		exchange(t, pair.A, echo, 1, 5*time.Second) // 64 bytes of payload
		out, status := p.end(t, nil)
		var j jsonPacket
		if err := json.Unmarshal([]byte(out), &j); err != nil || status != exitOK {
			t.Fatalf("status %d, %v: %s", status, err, out)
		}
		if j.Length != 92 || j.Captured != 64 || len(j.Data) != 2*64 || j.PayloadLength == nil || *j.PayloadLength != 64 {
			t.Errorf("output: %s", out)
		}
		if _, status := w.end(t, nil); status != exitOK {
			t.Errorf("status %d: %s", status, w.errout)
		}
		if r := runCommand(t, "", "dump", "-r", written); !strings.Contains(r.out, "UDP, length 64") || !strings.Contains(r.out, "captured 64 of 92 bytes") {
			t.Errorf("read back: %s%s", r.out, r.errout)
		}
	})
}

// needProcesses returns why the processes of packets are unavailable, nil if they are available.
func needProcesses() error { return kernelprocesses.OfPackets.Err() }

// TestProcesses prints and drops the packets of a process.
func TestProcesses(t *testing.T) {
	if err := needProcesses(); err != nil {
		t.Skipf("the processes of packets are not known here: %v", err)
	}
	pair, echo := hosts(t)
	mine := fmt.Sprintf("processId == %d", os.Getpid())
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	byName := "process == " + filter.QuoteName(strings.TrimSpace(string(comm)))
	for _, test := range []struct {
		name string
		args []string
		want []string // in the first line
	}{
		{"text", []string{"dump", "-c", "2", mine + " and udp"}, []string{fmt.Sprintf(" %d]\n", os.Getpid())}},
		{"by its name", []string{"dump", "-c", "2", byName + " and udp"}, []string{fmt.Sprintf(" %d]\n", os.Getpid())}},
		{"fields", []string{"dump", "-c", "2", "-v", mine + " and udp"}, []string{fmt.Sprintf(" processId=%d ", os.Getpid())}},
		{"JSON", []string{"dump", "-c", "2", "--json", mine + " and udp"},
			[]string{fmt.Sprintf(`"pid":%d`, os.Getpid()), `"program":"/`, filepath.Base(os.Args[0])}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := start(t, pair.A, test.args...)
			if n := exchange(t, pair.A, echo, 1, 5*time.Second); n != 1 {
				t.Errorf("%d datagrams came back", n)
			}
			out, status := p.end(t, nil)
			if status != exitOK {
				t.Errorf("status %d", status)
			}
			for _, want := range test.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q is not in\n%s", want, out)
				}
			}
		})
	}
	p := start(t, pair.A, "drop", mine+" and outbound")
	if n := exchange(t, pair.A, echo, 1, 100*time.Millisecond); n != 0 {
		t.Errorf("%d datagrams came back", n)
	}
	p.end(t, os.Interrupt)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"dump", "--engine", "interpreter", mine}, "the process of a packet is not known here"},
		{[]string{"dump", "--engine", "interpreter", `process == "curl"`}, "the process of a packet is not known here"},
		{[]string{"dump", "-r", "-", mine}, "this capture file does not record"},
	} {
		_ = pair.A.Do(func() error {
			if r := runCommand(t, string(sampleFile(t)), test.args...); r.status == exitOK || !strings.Contains(r.errout, test.want) {
				t.Errorf("%v: %+v", test.args, r)
			}
			return nil
		})
	}
}

// timeOfDay returns the time since midnight.
func timeOfDay(t time.Time) time.Duration {
	return t.Sub(time.Date(t.Year(), t.Month(), t.Day(), 0, 0, 0, 0, t.Location()))
}

func TestDumpCaptureFile(t *testing.T) {
	pair, echo := hosts(t)
	p := start(t, pair.A, "dump", "-w", "-", "--json", "udp")
	before := time.Now()
	exchange(t, pair.A, echo, 2, 5*time.Second)
	out, status := p.end(t, os.Interrupt)
	if status != exitOK {
		t.Errorf("status %d: %s", status, p.errout)
	}
	r, err := pcapgo.NewNgReader(strings.NewReader(out), pcapgo.NgReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.LinkType() != layers.LinkTypeRaw {
		t.Errorf("link type %v", r.LinkType())
	}
	for i, want := range []pcapgo.NgEpbFlag{
		pcapgo.NgEpbFlagDirectionOutbound, pcapgo.NgEpbFlagDirectionInbound,
		pcapgo.NgEpbFlagDirectionOutbound, pcapgo.NgEpbFlagDirectionInbound,
	} {
		data, info, options, err := r.ReadPacketDataWithOptions()
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if options.Flags == nil || options.Flags.Direction != want || len(data) != 20+8+64 {
			t.Errorf("packet %d: flags %+v, %d bytes", i, options.Flags, len(data))
		}
		if d := info.Timestamp.Sub(before); d < -time.Second || d > time.Minute {
			t.Errorf("packet %d was captured %v after the start", i, d)
		}
		if f, err := r.Interface(info.InterfaceIndex); err != nil || f.Name != "eth0" || f.Filter != "udp" {
			t.Errorf("packet %d: interface %+v, %v", i, f, err)
		}
	}
	if _, _, err := r.ReadPacketData(); err != io.EOF {
		t.Errorf("after the last packet: %v", err)
	}
	checkSummary(t, p.errout.String(), summary{Matched: 4, Received: 4})
}

// checkSummary compares the counters of a summary.
func checkSummary(t *testing.T, errout string, want summary) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(errout), "\n")
	var got summary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
		t.Fatalf("%v in %s", err, errout)
	}
	want.Event, want.Seconds = "summary", got.Seconds
	if got != want || got.Seconds <= 0 {
		t.Errorf("summary %+v, want %+v", got, want)
	}
}

func TestDrop(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine string) {
		pair, echo := hosts(t)
		p := start(t, pair.A, "drop", "--engine", engine, "--json", "udp.DstPort == 7")
		if n := exchange(t, pair.A, echo, 3, 100*time.Millisecond); n != 0 {
			t.Errorf("%d datagrams came back", n)
		}
		out, status := p.end(t, syscall.SIGTERM)
		if status != exitOK || out != "" {
			t.Errorf("status %d, output %q", status, out)
		}
		checkSummary(t, p.errout.String(), summary{Matched: 3, Dropped: 3})
		if n := exchange(t, pair.A, echo, 3, 5*time.Second); n != 3 {
			t.Errorf("%d of 3 datagrams came back after the end", n)
		}
	})
}

// needKernel skips where the kernel cannot decide.
func needKernel(t *testing.T, h *lab.Host) {
	t.Helper()
	err := h.Do(func() error {
		d, err := divert.Open("false", divert.WithEngine(divert.EngineKernel))
		if err != nil {
			return err
		}
		return d.Close()
	})
	switch {
	case err == nil:
	case os.Getenv("DIVERT_NEED_KERNEL") == "" && (errors.Is(err, divert.ErrNotSupported) || errors.Is(err, os.ErrPermission)):
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

func TestPassthru(t *testing.T) {
	for _, test := range []struct {
		name   string
		args   []string
		come   uint64 // packets that come back
		kernel bool   // needs eBPF
	}{
		{"accept", nil, 20, false},
		{"one by one", []string{"--batch", "1"}, 20, false},
		{"rewrite", []string{"--rewrite"}, 20, false},
		{"interpreter", []string{"--engine", "interpreter"}, 20, false},
		{"queues", []string{"--queues", "4"}, 20, false},
		{"a guard that drops", []string{"--drop-on-hang", "10s"}, 20, true},
		{"the first", []string{"--first", "3"}, 3, false},
		{"the first, interpreter", []string{"--first", "3", "--engine", "interpreter"}, 3, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			pair, echo := hosts(t)
			if test.kernel {
				needKernel(t, pair.A)
			}
			p := start(t, pair.A, append([]string{"passthru", "--json", "udp"}, test.args...)...)
			if n := exchange(t, pair.A, echo, 10, 5*time.Second); n != 10 {
				t.Errorf("%d of 10 datagrams came back", n)
			}
			if _, status := p.end(t, os.Interrupt); status != exitOK {
				t.Errorf("status %d", status)
			}
			checkSummary(t, p.errout.String(), summary{Matched: test.come, Received: test.come, Reinjected: test.come})
		})
	}
}

// TestClosedOutput closes the reader of the output, as in "divert dump | head -1".
func TestClosedOutput(t *testing.T) {
	pair, echo := hosts(t)
	p := start(t, pair.A, "dump", "udp")
	if err := p.out.Close(); err != nil {
		t.Fatal(err)
	}
	exchange(t, pair.A, echo, 1, 5*time.Second)
	p.out = io.NopCloser(strings.NewReader(""))
	if _, status := p.end(t, nil); status != exitOK || strings.Contains(p.errout.String(), "pipe") {
		t.Errorf("status %d: %s", status, p.errout)
	}
}

// TestOpenErrors tries calls that Open refuses, in its own network.
func TestOpenErrors(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, test := range []struct {
		name   string
		args   []string
		status int
		text   string
	}{
		{"priority", []string{"dump", "--priority", "30001"}, exitUsage, "divert: invalid argument: priority 30001 is out of range (-30000 to 30000)\nSee `divert dump --help`.\n"},
		{"queue", []string{"passthru", "--queue-length", "1"}, exitUsage, "divert: invalid argument: queue length 1 is out of range (32 to 16384 packets)\nSee `divert passthru --help`.\n"},
		{"queues", []string{"passthru", "--queues", "0"}, exitUsage, "divert: invalid argument: 0 queues; 1 to 16 are possible\nSee `divert passthru --help`.\n"},
		{"hang", []string{"passthru", "--pass-on-hang", "1ms"}, exitUsage, "divert: invalid argument: a program hangs after 1ms; 100ms to 1h0m0s are possible\nSee `divert passthru --help`.\n"},
		{"file", []string{"dump", "-w", "/nowhere/x"}, exitFailed, "divert: open /nowhere/x: no such file or directory\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_ = pair.A.Do(func() error {
				if r := runCommand(t, "", test.args...); r.status != test.status || r.errout != test.text || r.out != "" {
					t.Errorf("status %d, output %q, errors\n%s\nwant %d and\n%s", r.status, r.out, r.errout, test.status, test.text)
				}
				return nil
			})
		})
	}
}

// TestNoPrivileges runs the command without privileges.
func TestNoPrivileges(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var errout bytes.Buffer
	cmd := exec.Command(exe, "dump")
	cmd.Env = append(os.Environ(), commandVariable+"=1")
	cmd.Stderr = &errout
	// A new user namespace has no rights over its parent's network.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	err = pair.A.Exec(cmd)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Skipf("no user namespaces here: %v", err)
	}
	if exit.ExitCode() != exitFailed || !strings.Contains(errout.String(), "Run it as root, or try `divert demo`") {
		t.Errorf("status %d: %s", exit.ExitCode(), &errout)
	}
}
