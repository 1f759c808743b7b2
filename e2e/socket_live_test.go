//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/eventprog"
	"github.com/opendivert/divert/packet"
)

// TestSocketProcessID filters by process; the handle belongs to a third one.
func TestSocketProcessID(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	p, q := startPerformer(t, pair.A), startPerformer(t, pair.A)
	d := openEvents(t, pair.A, packet.LayerSocket, fmt.Sprintf("event == BIND and processId == %d", q.pid), 0)
	p.script("socket a udp4\nbind a 127.0.0.1:5353")
	q.script("socket a udp4\nbind a 127.0.0.1:5354 = EACCES")
	compareLines(t, collect(t, d, map[uint32]string{q.pid: "q"}), "BIND q 17 127.0.0.1:5354 - lo #1")
}

// TestSocketsOfOtherNamespaces: they are neither seen nor refused.
func TestSocketsOfOtherNamespaces(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openEvents(t, pair.A, packet.LayerSocket, "true", 0)
	p := startPerformer(t, pair.B)
	p.script(`socket l tcp4
		bind l 10.77.0.2:80
		listen l
		socket c tcp4
		connect c 10.77.0.2:80
		accept s l
		socket u udp6
		send u [fd77::2]:5353
		socket v udp4
		bind v 10.77.0.2:5353
		send v 10.77.0.2:5353
		recv v`)
	compareLines(t, collect(t, d, nil), "")
}

// TestSocketsOlderThanTheHandle: their later events are reported, and can be refused.
func TestSocketsOlderThanTheHandle(t *testing.T) {
	for _, kind := range []string{"tcp4", "mptcp4"} {
		t.Run(kind, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			server, client := startPerformer(t, pair.A), startPerformer(t, pair.A)
			names := map[uint32]string{server.pid: "server", client.pid: "client"}
			server.script("socket l " + kind + "\nbind l 127.0.0.1:8080\nlisten l")
			server.script("socket u udp4\nbind u 127.0.0.1:5353")
			d := openEvents(t, pair.A, packet.LayerSocket, "event != BIND", divert.Sniff)
			client.script("socket c tcp4\nconnect c 127.0.0.1:8080")
			client.script("socket u udp4\nbind u 127.0.0.1:5354\nsend u 127.0.0.1:5353")
			server.script("accept s l\nclose s\nclose u")
			compareLines(t, collect(t, d, names), `
				CONNECT client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #1
				ACCEPT server 6 127.0.0.1:8080 127.0.0.1:* sniffed,in,lo #2<3
				CONNECT client 17 127.0.0.1:5354 127.0.0.1:5353 sniffed,lo #4
				ACCEPT server 17 127.0.0.1:5353 127.0.0.1:5354 sniffed,in,lo #5
				CLOSE server 6 127.0.0.1:8080 127.0.0.1:* sniffed,lo #2<3
				CLOSE server 17 127.0.0.1:5353 - sniffed,lo #5`)
			d = openEvents(t, pair.A, packet.LayerSocket, "event == ACCEPT and localPort == 8080", 0)
			client.script("socket d tcp4\nnonblock d\nconnect d 127.0.0.1:8080 = EINPROGRESS")
			compareLines(t, collect(t, d, names), "ACCEPT server 6 127.0.0.1:8080 127.0.0.1:* in,lo #0<1")
		})
	}
}

// TestForkedServers accept on a listener that their parent opened: the process of the listener is the last one that
// made it listen.
func TestForkedServers(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openEvents(t, pair.A, packet.LayerSocket, "event != BIND and event != CONNECT and (localPort == 8080 or remotePort == 8080)", divert.Sniff)
	var l net.Listener
	if err := pair.A.Do(func() (err error) {
		l, err = net.Listen("tcp4", "127.0.0.1:8080")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	p := startPerformerWith(t, pair.A, file)
	file.Close()
	l.Close() // the child still holds it
	q := startPerformer(t, pair.A)
	q.script("socket c tcp4\nconnect c 127.0.0.1:8080")
	p.script("inherit l\naccept s l\nclose s\nclose l")
	q.script("close c")
	compareLines(t, collect(t, d, map[uint32]string{uint32(os.Getpid()): "parent", p.pid: "child", q.pid: "client"}), `
		LISTEN parent 6 127.0.0.1:8080 - sniffed,lo #1
		ACCEPT parent 6 127.0.0.1:8080 127.0.0.1:* sniffed,in,lo #2<1
		CLOSE child 6 127.0.0.1:8080 127.0.0.1:* sniffed,lo #2<1
		CLOSE parent 6 127.0.0.1:8080 - sniffed,lo #1
		CLOSE client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #3`)
}

// TestSocketHTTP fetches a page with package net/http, which listens with MPTCP and connects without waiting.
func TestSocketHTTP(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			d := openEvents(t, pair.A, packet.LayerSocket, "localPort == 8080 or remotePort == 8080", divert.Sniff)
			address := netip.AddrPortFrom(f.addr(pair.A), 8080).String()
			l, err := pair.A.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			server := &http.Server{Handler: http.NotFoundHandler()}
			served := make(chan error, 1)
			go func() { served <- server.Serve(l) }()
			transport := &http.Transport{DisableKeepAlives: true, DialContext: pair.A.Dial}
			r, err := (&http.Client{Transport: transport}).Get("http://" + address)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			_ = server.Shutdown(t.Context())
			<-served
			host := f.addr(pair.A).String()
			side := func(port string) string { return net.JoinHostPort(host, port) }
			v6 := ""
			if f.addr(pair.A).Is6() {
				v6 = ",v6"
			}
			got := collect(t, d, map[uint32]string{uint32(os.Getpid()): "me"})
			for i, line := range got { // the two ends close at the same time, so endpoints are left out
				got[i] = line[:strings.Index(line, " #")]
			}
			slices.Sort(got)
			compareLines(t, got, strings.NewReplacer("HERE:", side("8080"), "PORT:", side("*"), "V6", v6).Replace(`
				ACCEPT me 6 HERE: PORT: sniffed,in,loV6
				BIND me 6 HERE: - sniffedV6
				CLOSE me 6 PORT: HERE: sniffed,loV6
				CLOSE me 6 HERE: - sniffedV6
				CLOSE me 6 HERE: PORT: sniffed,loV6
				CONNECT me 6 PORT: HERE: sniffed,loV6
				LISTEN me 6 HERE: - sniffedV6`))
		})
	}
}

// TestSocketPriorities has several handles on one operation: lower ones do not see an operation that a higher one
// refuses (specification: api.md 13).
func TestSocketPriorities(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	open := func(priority int16, flags divert.Flag) *divert.Handle {
		return openEvents(t, pair.A, packet.LayerSocket, "event == BIND or event == CLOSE", flags, divert.WithPriority(priority))
	}
	low, high := open(-5, divert.Sniff), open(5, divert.Sniff)
	middle, second := open(0, 0), open(-1, 0)
	p := startPerformer(t, pair.A)
	names := map[uint32]string{p.pid: "client"}
	p.script("socket a udp4\nbind a 127.0.0.1:5353 = EACCES")
	compareLines(t, collect(t, middle, names), "BIND client 17 127.0.0.1:5353 - lo #1")
	compareLines(t, collect(t, second, names), "")
	compareLines(t, collect(t, high, names), "BIND client 17 127.0.0.1:5353 - sniffed,lo #1")
	compareLines(t, collect(t, low, names), "")
}

// TestSocketSetFilter replaces the filter of a handle that refuses.
func TestSocketSetFilter(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openEvents(t, pair.A, packet.LayerSocket, "remotePort == 80", 0)
	p := startPerformer(t, pair.A)
	p.script("socket a udp4\nsend a 127.0.0.1:80 = EACCES\nsend a 127.0.0.1:81\nsend a 127.0.0.1:81\nsend a 127.0.0.1:80 = EACCES\nsend a 127.0.0.1:81")
	if err := d.SetFilter("remotePort == 81"); err != nil {
		t.Fatal(err)
	}
	p.script("send a 127.0.0.1:81 = EACCES\nsend a 127.0.0.1:80\nsend a 127.0.0.1:80\nsend a 127.0.0.1:81 = EACCES")
	if err := d.SetFilter("event == ACCEPT"); err != nil {
		t.Fatal(err)
	}
	p.script("send a 127.0.0.1:81\nsend a 127.0.0.1:80")
}

// TestSocketPeers sends datagrams to and fro: each peer of a socket is reported once, whichever side sent first and
// however they take turns, and once more after SetFilter.
func TestSocketPeers(t *testing.T) {
	for _, f := range []struct{ network, host, told, v6 string }{
		{"udp4", "127.0.0.1", "127.0.0.1", ""}, {"udp6", "[::1]", "[::1]", ",v6"}, {"udp6", "[::ffff:127.0.0.1]", "127.0.0.1", ""},
	} {
		t.Run(f.host, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			const text = "event == CONNECT or event == ACCEPT"
			d := openEvents(t, pair.A, packet.LayerSocket, text, divert.Sniff)
			p := startPerformer(t, pair.A)
			script := func(text string) { p.script(strings.NewReplacer("NET", f.network, "HOST", f.host).Replace(text)) }
			script(`socket a NET
				socket b NET
				socket c NET
				bind a HOST:7001
				bind b HOST:7002
				bind c HOST:7003
				send a HOST:7002
				send a HOST:7002
				send a HOST:7003
				send a HOST:7002
				send b HOST:7001
				send b HOST:7003
				send b HOST:7001
				send c HOST:7002
				send a HOST:7003`)
			if err := d.SetFilter("(" + text + ") and remotePort != 7003"); err != nil {
				t.Fatal(err)
			}
			script("send a HOST:7003\nsend a HOST:7002\nsend a HOST:7003\nsend a HOST:7002")
			compareLines(t, collect(t, d, map[uint32]string{p.pid: "me"}), strings.NewReplacer("HOST", f.told, "V6", f.v6).Replace(`
				CONNECT me 17 HOST:7001 HOST:7002 sniffed,loV6 #1
				ACCEPT me 17 HOST:7002 HOST:7001 sniffed,in,loV6 #2
				CONNECT me 17 HOST:7001 HOST:7003 sniffed,loV6 #1
				ACCEPT me 17 HOST:7003 HOST:7001 sniffed,in,loV6 #3
				CONNECT me 17 HOST:7002 HOST:7003 sniffed,loV6 #2
				ACCEPT me 17 HOST:7003 HOST:7002 sniffed,in,loV6 #3
				ACCEPT me 17 HOST:7003 HOST:7001 sniffed,in,loV6 #3
				CONNECT me 17 HOST:7001 HOST:7002 sniffed,loV6 #1
				ACCEPT me 17 HOST:7002 HOST:7001 sniffed,in,loV6 #2`))
		})
	}
}

// TestSocketListenRefused refuses LISTEN: in advance where the kernel lets programs do so, otherwise just after it has
// happened.
func TestSocketListenRefused(t *testing.T) {
	const late = "listen l\naccept s l = EINVAL"
	for _, tt := range []struct {
		name, filter, network, bind, connect string
		early                                string // results of listen and then accept
		want                                 string
	}{
		{"IPv4", "event == LISTEN", "tcp4", "127.0.0.1:8080", "127.0.0.1:8080", "listen l = EACCES", "LISTEN client 6 127.0.0.1:8080 - lo #1"},
		{"IPv6", "event == LISTEN and localPort == 8080", "tcp6", "[::]:8080", "127.0.0.1:8080", "listen l = EACCES", "LISTEN client 6 [::]:8080 - v6 #1"},
		{"IPv6, mapped", "localAddr == 127.0.0.1 and event == LISTEN", "tcp6", "[::ffff:127.0.0.1]:8080", "127.0.0.1:8080", "listen l = EACCES",
			"LISTEN client 6 127.0.0.1:8080 - lo #1"},
		{"MPTCP", "event == LISTEN", "mptcp4", "127.0.0.1:8080", "127.0.0.1:8080", "listen l = EACCES", "LISTEN client 6 127.0.0.1:8080 - lo #1"},
		{"a port that the kernel chooses", "event == LISTEN and localPort != 7", "tcp4", "", "", late, "LISTEN client 6 0.0.0.0:* -  #1"},
		{"another port", "event == LISTEN and localPort == 8081", "tcp4", "127.0.0.1:8080", "", "listen l\nnonblock l\naccept s l = EAGAIN", ""},
		{"silently", "event == LISTEN", "tcp4", "127.0.0.1:8080", "127.0.0.1:8080", "listen l = EACCES", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			flags := divert.Flag(0)
			if tt.name == "silently" {
				flags = divert.Drop
			}
			d := openEvents(t, pair.A, packet.LayerSocket, tt.filter, flags)
			early := strings.Contains(d.Description(), "a refused LISTEN fails")
			if os.Getenv("DIVERT_NEED_LISTEN") != "" && !early {
				t.Fatalf("this kernel should refuse at once: %+v", eventprog.RefuseListen.Err())
			}
			refusal := tt.early
			switch {
			case early || !strings.Contains(refusal, "EACCES"):
			case tt.name == "MPTCP":
				// The kernel destroys no listening MPTCP socket: it waits in vain, and so do its clients.
				refusal = "listen l\nnonblock l\nsocket c tcp4\nnonblock c\nconnect c " + tt.connect + " = EINPROGRESS\naccept s l = EAGAIN"
				tt.connect = ""
			default:
				refusal = late
			}
			p := startPerformer(t, pair.A)
			p.script("socket l " + tt.network)
			if tt.bind != "" {
				p.script("bind l " + tt.bind)
			}
			p.script(refusal)
			if tt.connect != "" {
				p.script("socket c tcp4\nconnect c " + tt.connect + " = ECONNREFUSED")
			}
			compareLines(t, collect(t, d, map[uint32]string{p.pid: "client"}), tt.want)
			if s := stats(t, d); flags == divert.Drop && s.Dropped != 1 {
				t.Errorf("%+v", s)
			}
			p.script("close l\nsocket m " + tt.network)
			if tt.bind != "" {
				p.script("bind m " + tt.bind)
			}
			p.script("listen m")
		})
	}
}

// TestSocketLongFilter opens handles whose programs have several decisions, each of thousands of branches.
func TestSocketLongFilter(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	var b strings.Builder
	for i := range 2500 {
		fmt.Fprintf(&b, "(remotePort == %d and remoteAddr == 10.0.%d.%d) or ", i+1, i>>8, i&255)
	}
	text := "tcp and (" + b.String() + "remotePort == 8080)"
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	d := openEvents(t, pair.A, packet.LayerSocket, "(event == CONNECT or event == ACCEPT) and "+text, divert.Sniff)
	f := openEvents(t, pair.A, packet.LayerFlow, text, divert.Sniff)
	p := startPerformer(t, pair.A)
	p.script("socket l tcp4\nbind l 127.0.0.1:8080\nlisten l\nsocket c tcp4\nconnect c 127.0.0.1:8080\naccept s l\nreset c")
	names := map[uint32]string{p.pid: "client"}
	compareLines(t, collect(t, d, names), "CONNECT client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #1")
	compareLines(t, collect(t, f, names), `
		ESTABLISHED client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #1
		DELETED client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #1`)
}

// programsOf counts the programs on the root of the cgroup hierarchy that belong to handles of a priority.
func programsOf(t *testing.T, priority int16) (n int) {
	t.Helper()
	root, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	f := root.Dir
	defer f.Close()
	prefix := fmt.Sprintf("divert_%06x", uint32(cursor.NewKey(priority, 0)))[:len("divert_")+4]
	for kind := range ebpf.AttachTCXEgress {
		attached, err := link.QueryPrograms(link.QueryOptions{Target: int(f.Fd()), Attach: kind})
		if err != nil {
			continue // not a kind of cgroup programs
		}
		for _, a := range attached.Programs {
			p, err := ebpf.NewProgramFromID(a.ID)
			if err != nil {
				continue
			}
			info, err := p.Info()
			p.Close()
			if err == nil && strings.HasPrefix(info.Name, prefix) {
				n++
			}
		}
	}
	return n
}

// TestKilledOwnersLeaveNoProgram kills the owner of a handle that refuses.
func TestKilledOwnersLeaveNoProgram(t *testing.T) {
	for _, layer := range []divert.Layer{divert.LayerSocket, divert.LayerFlow} {
		t.Run(layer.String(), func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			openEvents(t, pair.A, layer, "false", divert.Sniff).Close()
			priority := int16(20000 + os.Getpid()%9000)
			flags := divert.RecvOnly
			if layer == divert.LayerFlow {
				flags |= divert.Sniff
			}
			cmd, _ := startHolder(t, pair.A, layer, flags, priority, "true")
			if programsOf(t, priority) == 0 {
				t.Fatal("no programs of the handle are found")
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			for start := time.Now(); programsOf(t, priority) > 0; time.Sleep(5 * time.Millisecond) {
				if time.Since(start) > 5*time.Second {
					t.Fatalf("%d programs are left", programsOf(t, priority))
				}
			}
			startPerformer(t, pair.A).script("socket a udp4\nbind a 127.0.0.1:5353")
		})
	}
}

// TestSocketRates makes many connections at once: none is lost within the limits of the queue, and losses beyond them
// are counted.
func TestSocketRates(t *testing.T) {
	for _, tt := range []struct {
		name   string
		length int
		read   bool
	}{
		{"read as they come", 16384, true},
		{"past the limits", 64, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			d := openEvents(t, pair.A, packet.LayerSocket, "event == CONNECT and remotePort == 9", divert.Sniff,
				divert.WithQueueLength(tt.length), divert.WithQueueSize(32<<20), divert.WithQueueTime(16*time.Second))
			const workers, each, steps = 4, 10000, 50
			var w *worker
			if tt.read {
				w = batches(t, d, func(ps []divert.Packet) (int, error) { return len(ps), nil })
			}
			start := time.Now()
			var group sync.WaitGroup
			var made atomic.Uint64
			for range workers {
				group.Go(func() {
					// In steps, so that a reader that the race detector slows down can follow.
					for step := range steps {
						for tt.read && made.Load() > stats(t, d).Received+512 && time.Since(start) < time.Minute {
							time.Sleep(time.Millisecond)
						}
						made.Add(each / steps)
						if err := pair.A.Do(func() error { return connectMany(each / steps) }); err != nil {
							t.Errorf("step %d: %v", step, err)
							return
						}
					}
				})
			}
			group.Wait()
			took := time.Since(start)
			t.Logf("%.0f connects a second", workers*each/took.Seconds())
			counted := func() uint64 {
				s := stats(t, d)
				if tt.read {
					return s.Received
				}
				return s.Matched
			}
			for start := time.Now(); counted() < workers*each && time.Since(start) < 20*time.Second; {
				time.Sleep(10 * time.Millisecond)
			}
			s := stats(t, d)
			if s.Matched != workers*each {
				t.Errorf("%d of %d matched: %+v", s.Matched, workers*each, s)
			}
			if lost := s.DroppedFull + s.DroppedOld; tt.read && (lost != 0 || s.Received != workers*each) ||
				!tt.read && (s.Waiting != uint64(tt.length) || lost != workers*each-uint64(tt.length)) {
				t.Errorf("%+v", s)
			}
			if w != nil {
				_ = d.Close()
				w.wait()
			}
		})
	}
}

// connectMany connects datagram sockets, which is cheapest for the kernel.
func connectMany(n int) error {
	to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(unix.Connect(fd, to), unix.Close(fd)); err != nil {
			return err
		}
	}
	return nil
}

// TestEventLayerErrors makes calls that the layers do not support.
func TestEventLayerErrors(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	openEvents(t, pair.A, packet.LayerSocket, "false", divert.Sniff)
	err := pair.A.Do(func() error {
		_, err := divert.Open("true", divert.WithLayer(divert.LayerSocket), divert.WithFlags(divert.RecvOnly), divert.WithEngine(divert.EngineInterpreter))
		return err
	})
	if !errors.Is(err, divert.ErrNotSupported) {
		t.Errorf("the interpreter refuses sockets: %v", err)
	}
	d := openEvents(t, pair.A, packet.LayerSocket, "true", divert.Sniff)
	if err := d.Send(&divert.Packet{Data: []byte{1}, Addr: divert.Address{}}); !errors.Is(err, divert.ErrRecvOnly) {
		t.Errorf("send: %v", err)
	}
	if err := d.Shutdown(divert.ShutdownSend); err != nil {
		t.Fatal(err)
	}
	if err := d.Send(&divert.Packet{Data: []byte{1}, Addr: divert.Address{}}); !errors.Is(err, divert.ErrShutdown) {
		t.Errorf("send: %v", err)
	}
	if !strings.Contains(d.Description(), "eBPF") {
		t.Errorf("engine %q", d.Description())
	}
}
