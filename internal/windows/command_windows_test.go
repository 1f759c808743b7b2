package windows

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// commandTime is the time limit for a run of the command.
const commandTime = time.Minute

// command is a run of the command divert.
type command struct {
	t           testing.TB
	cmd         *exec.Cmd
	out, errout bytes.Buffer
}

// startCommand starts the command, which ends with the test at the latest.
func startCommand(t testing.TB, args ...string) *command {
	t.Helper()
	path := os.Getenv(envCommand)
	if path == "" {
		t.Skip(envCommand + " is not set: the tests of the command run under Wine, see TestWine")
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTime)
	t.Cleanup(cancel)
	c := &command{t: t, cmd: exec.CommandContext(ctx, path, args...)}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.errout
	c.cmd.WaitDelay = commandTime
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.cmd.ProcessState == nil {
			_ = c.cmd.Process.Kill() // it may have ended
			_ = c.cmd.Wait()
		}
	})
	return c
}

// wait waits for the end of the command and checks its exit status.
func (c *command) wait(status int) {
	c.t.Helper()
	_ = c.cmd.Wait() // the exit status has the error
	if got := c.cmd.ProcessState.ExitCode(); got != status {
		c.t.Errorf("%v: exit status %d, want %d\n%s%s", c.cmd.Args[1:], got, status, &c.out, &c.errout)
	}
}

// kill ends the command by force.
func (c *command) kill() {
	c.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	c.wait(1)
}

// says checks that the command's output contains texts.
func (c *command) says(printed *bytes.Buffer, texts ...string) {
	c.t.Helper()
	for _, text := range texts {
		if !strings.Contains(printed.String(), text) {
			c.t.Errorf("%v: output lacks %q:\n%s%s", c.cmd.Args[1:], text, &c.out, &c.errout)
		}
	}
}

// runCommand runs the command to its end.
func runCommand(t testing.TB, status int, args ...string) *command {
	t.Helper()
	c := startCommand(t, args...)
	c.wait(status)
	return c
}

// uploaded waits for the upload of a filter and returns its number of instructions.
func (f *fixture) uploaded() int {
	f.t.Helper()
	for range 4000 {
		for _, e := range f.log() {
			if e.code == codeStartup {
				return len(e.data) / prog.InstructionSize
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.t.Fatal("no handle was opened")
	return 0
}

// last gives the receiving command its last packet: the driver ends receiving behind it, as after a shutdown. Tests
// cannot press Ctrl-C: Wine has no console without a terminal.
func (f *fixture) last(p packet.Packet) {
	f.t.Helper()
	f.eventually("the command receives", func(c census) bool { return c.pending == 1 })
	f.fail(codeRecv, statusPipeEmpty, 0, 1)
	f.queue(p)
}

func TestCommandDump(t *testing.T) {
	f := load(t)
	c := startCommand(t, "dump", "-c", "3", "-q", "udp")
	f.uploaded()
	for n := range 3 {
		f.queue(numbered(n, 10))
	}
	c.wait(0)
	c.says(&c.out, "10.0.0.1.12345 > 10.0.0.2.53: UDP 14", "IP6 ")
	c.says(&c.errout, "watching at layer network", "WinDivert driver 2.2, 64-bit", "3 received")
	if n := strings.Count(c.out.String(), "\n"); n != 3 {
		t.Errorf("%d lines:\n%s", n, &c.out)
	}
}

func TestCommandPassthru(t *testing.T) {
	const count = 20
	c := carries(t, count, "passthru", "--json", "udp")
	c.says(&c.errout, `"event":"summary"`, fmt.Sprintf(`"received":%d,"reinjected":%[1]d`, count))
}

// TestCommandImpair: held packets go on unchanged, even those of the last moment.
func TestCommandImpair(t *testing.T) {
	c := carries(t, 20, "impair", "--lag", "50ms", "--json", "udp")
	c.says(&c.errout, `"event":"summary"`)
}

// carries runs a command that sends packets on, brings it some, and expects them to be sent unchanged.
func carries(t *testing.T, count int, args ...string) *command {
	t.Helper()
	f := load(t)
	c := startCommand(t, args...)
	f.uploaded()
	var want []byte
	for n := range count {
		p := numbered(n, 100)
		want = append(want, p.Data...)
		if n < count-1 {
			f.queue(p)
			continue
		}
		f.eventually("all packets are sent on", func(c census) bool { return c.sends == uint32(count-1) })
		f.last(p)
	}
	c.wait(0)
	var got []byte
	for _, e := range f.log() {
		if e.code == codeSend {
			addresses := int(e.record[8]) | int(e.record[9])<<8
			got = append(got, e.data[addresses:]...)
		}
	}
	if !bytes.Equal(got, want) {
		t.Errorf("sent %d bytes, other than the %d that came", len(got), len(want))
	}
	return c
}

// TestCommandProxy: the driver does not report the processes of packets.
func TestCommandProxy(t *testing.T) {
	load(t)
	c := startCommand(t, "proxy", "--to", "127.0.0.1:9", "tcp.DstPort == 80")
	c.wait(1)
	c.says(&c.errout, "proxy --to must not redirect the connections of the program at 127.0.0.1:9")
}

func TestCommandDrop(t *testing.T) {
	f := load(t)
	c := startCommand(t, "drop", "udp.DstPort == 53 or tcp")
	if n := f.uploaded(); n != 2 {
		t.Errorf("%d instructions", n)
	}
	f.queue(numbered(1, 10))
	c.kill()
	c.says(&c.errout, "dropping at layer network, priority 0 (WinDivert driver 2.2")
	f.eventually("the handle is closed", func(c census) bool { return c.contexts == 0 })
	if now := f.census(); now.sends != 0 || now.queued != 0 {
		t.Errorf("afterwards %+v", now)
	}
}

func TestCommandReject(t *testing.T) {
	f := load(t)
	c := startCommand(t, "reject", "udp")
	f.uploaded()
	f.last(numbered(2, 10))
	c.wait(0)
	if n := f.census().sends; n != 1 {
		t.Errorf("%d packets sent", n)
	}
	for _, e := range f.log() {
		if e.code != codeSend {
			continue
		}
		var p packet.Parsed
		answer := e.data[packet.AddressSize:]
		if !p.Parse(answer) || p.ICMP(answer) == nil || p.ICMP(answer).Type() != 3 {
			t.Errorf("the answer is %x", answer)
		}
	}
	c.says(&c.errout, "1 sent, 0 answered with RST, 1 with ICMP")
}

// event is an event of a layer other than NETWORK, in the driver's form.
func event(layer packet.Layer, e packet.Event) packet.Address {
	return packet.Address{Timestamp: 12345, Layer: layer, Event: e, Sniffed: true, Outbound: true}
}

func TestCommandEvents(t *testing.T) {
	for _, row := range []struct {
		args  []string
		layer packet.Layer
		event packet.Event
		texts []string
	}{
		{[]string{"flows"}, packet.LayerFlow, packet.EventFlowEstablished, []string{"ESTABLISHED", "10.1.2.3:443"}},
		{[]string{"sockets"}, packet.LayerSocket, packet.EventSocketConnect, []string{"CONNECT", "remote=[10.1.2.3]:443"}},
	} {
		t.Run(row.args[0], func(t *testing.T) {
			f := load(t)
			c := startCommand(t, row.args...)
			f.uploaded()
			a := event(row.layer, row.event)
			d := packet.FlowData{ProcessID: uint32(os.Getpid()), Protocol: 6, LocalPort: 1234, RemotePort: 443}
			d.LocalAddr, d.RemoteAddr = netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.1.2.3")
			a.SetFlow(d)
			f.last(packet.Packet{Addr: a})
			c.wait(0)
			c.says(&c.out, append(row.texts, filepath.Base(os.Args[0]))...) // the program of the process
			c.says(&c.errout, "1 event matched, 1 received")
		})
	}
}

// TestCommandList lists and kills another run of the command.
func TestCommandList(t *testing.T) {
	f := load(t)
	runCommand(t, 0, "list").wantNothing()
	f.log() // clears the uploads of this run
	victim := startCommand(t, "drop", "--priority", "77", "tcp.DstPort == 80")
	f.uploaded()
	pid := victim.cmd.Process.Pid

	list := runCommand(t, 0, "list")
	list.says(&list.out, "OPEN opened ", fmt.Sprintf(" pid=%d exe=", pid), `divert.exe layer=NETWORK flags=DROP priority=77 filter="tcp.DstPort = 80"`)
	list = runCommand(t, 0, "list", "--json")
	var line struct {
		Program, Filter string
		PID             int
	}
	if err := json.Unmarshal(list.out.Bytes(), &line); err != nil || line.PID != pid || !strings.HasSuffix(line.Program, "divert.exe") || line.Filter != "tcp.DstPort = 80" {
		t.Errorf("%v: %s", err, &list.out)
	}
	clean := runCommand(t, 1, "clean")
	clean.says(&clean.errout, fmt.Sprintf("%d (divert.exe)", pid), "divert kill all")

	kill := runCommand(t, 0, "kill", fmt.Sprint(pid))
	kill.says(&kill.out, "KILL opened ", fmt.Sprintf(" pid=%d ", pid))
	victim.wait(1)
	f.eventually("the handle of the process is closed", func(c census) bool { return c.contexts == 0 })
}

// wantNothing checks that the command printed no output.
func (c *command) wantNothing() {
	c.t.Helper()
	if c.out.Len()+c.errout.Len() > 0 {
		c.t.Errorf("%v printed\n%s%s", c.cmd.Args[1:], &c.out, &c.errout)
	}
}

// TestCommandWatch watches a handle being opened and closed. The driver keeps running meanwhile.
func TestCommandWatch(t *testing.T) {
	f := load(t)
	c := startCommand(t, "watch")
	f.uploaded()
	f.eventually("the command receives", func(c census) bool { return c.pending == 1 })
	clean := runCommand(t, 1, "clean") // which would stop the driver under it
	clean.says(&clean.errout, fmt.Sprintf("the driver stays: the processes %d (divert.exe) watch handles", c.cmd.Process.Pid))
	h := network(t, "udp")
	f.eventually("the opening is taken", func(c census) bool { return c.pending == 1 && c.queued == 0 })
	f.fail(codeRecv, statusPipeEmpty, 0, 1)
	h.Close()
	c.wait(0)
	c.says(&c.out, "OPEN opened ", "CLOSE opened ", fmt.Sprintf(" pid=%d ", os.Getpid()), `filter="udp"`)
}

// TestCommandErrors checks the command's messages for errors of the driver.
func TestCommandErrors(t *testing.T) {
	f := load(t)
	f.fail(codeInitialize, 0xC0000022, 0, 1) // STATUS_ACCESS_DENIED
	c := runCommand(t, 1, "dump")
	c.says(&c.errout, "Windows error 5", "run the program as Administrator")
	f.ioctl(testVersion, append(words(0x69645723, 0x53595376), words(1, 4)...), nil)
	c = runCommand(t, 1, "dump")
	c.says(&c.errout, "Windows error 654", "sc.exe stop WinDivert")
	c = runCommand(t, 2, "dump", "tcp.Port == 1")
	c.says(&c.errout, "unknown word")
	c = runCommand(t, 1, "demo")
	c.says(&c.errout, "network namespaces, which windows has not")
}

func TestCommandFilter(t *testing.T) {
	c := runCommand(t, 0, "filter", "object", "tcp.DstPort", "==", "80")
	c.says(&c.out, "@WinDiv_WX_1dWW2mAX\n")
	c = runCommand(t, 0, "version")
	c.says(&c.out, "windows/amd64")
}

func TestCommandDoctor(t *testing.T) {
	load(t)
	c := runCommand(t, 0, "doctor")
	c.says(&c.out, "Handles can be opened here, and are served by: WinDivert driver 2.2, 64-bit", "amd64",
		"rights                 yes  Administrator", "WinDivert64.sys", "service WinDivert      yes  running")
	c = runCommand(t, 0, "doctor", "--driver", os.Getenv("SystemRoot"))
	c.says(&c.out, "driver file            no   find the driver file: Windows error 2",
		"without it: the driver cannot be installed; one that runs already", "remedy: put the driver file")
	c = runCommand(t, 0, "doctor", "--driver", os.Args[0])
	c.says(&c.out, "engine.test.exe is a program or a library, no driver")
	c = runCommand(t, 0, "doctor", "--json", "--driver", testDriver(t))
	var r Report
	if err := json.Unmarshal(c.out.Bytes(), &r); err != nil || !r.Handles || len(r.Checks) != 6 || !r.Checks[2].OK {
		t.Errorf("%v: %s", err, &c.out)
	}
}

// TestCommandClean removes the driver and installs it again, from a path.
func TestCommandClean(t *testing.T) {
	path := testDriver(t)
	d, err := connect(false, path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	c := runCommand(t, 0, "clean")
	c.says(&c.out, "removed the driver WinDivert\n")
	if d, err := openDevice(); err == nil {
		d.close()
		t.Error("the driver still runs")
	}
	for _, again := range []string{"clean", "list"} {
		runCommand(t, 0, again).wantNothing()
	}
	c = runCommand(t, 1, "kill", "4")
	c.says(&c.errout, "process 4 has no handle open here")
	c = runCommand(t, 0, "doctor", "--driver", path)
	c.says(&c.out, "not running: the first handle starts it", "not installed: the first handle does that")
	c = runCommand(t, 1, "drop", "udp")
	c.says(&c.errout, "find the driver file: Windows error 2", "--driver")

	c = startCommand(t, "dump", "--driver", filepath.Dir(path), "-c", "1")
	for try := 0; ; try++ {
		if d, err = openDevice(); err == nil {
			break
		}
		if try == 2000 {
			t.Fatal("no driver was installed")
		}
		time.Sleep(5 * time.Millisecond)
	}
	f := &fixture{t, d}
	defer d.close()
	f.uploaded()
	f.queue(numbered(2, 10))
	c.wait(0)
	c.says(&c.out, "10.0.0.1.12345 > 10.0.0.2.53")
}
