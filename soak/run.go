//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// result holds the findings of a run.
type result struct {
	options
	begin, end time.Time
	flows      []*flow
	windows    []window
	kills      int
	stops      int
	foreign    int
	flaps      int
	sum        workerSum
	trouble    []string // messages of workers and disturbances
	samples    []sample
	full       int      // datagrams that did not fit in a receiver's buffer
	left       []string // left behind at the end: tables, descriptors …
}

// soak is a run.
type soak struct {
	result
	pair *lab.Pair
	r    *rand.Rand
	ws   []*worker
}

func run(ctx context.Context, o options) (*result, error) {
	pair, err := lab.TwoHosts(lab.LinkOptions{LearnNeighbours: true})
	if err != nil {
		return nil, err
	}
	defer pair.Close()
	for _, h := range []*lab.Host{pair.A, pair.B} { // through a link that goes down
		if err := h.Sysctl("net.ipv6.conf.eth0.keep_addr_on_down", "1"); err != nil {
			return nil, err
		}
	}
	s := &soak{pair: pair, r: rand.New(rand.NewPCG(o.seed, 0))}
	s.options, s.begin = o, time.Now()
	before := lab.TakeSnapshot(pair.A, pair.B)
	ctx, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	err = s.live(ctx)
	s.end = time.Now()
	n, fullErr := full(pair.A, pair.B)
	s.full, err = n, errors.Join(err, fullErr)
	s.left = before.Leaks()
	return &s.result, err
}

// live runs the traffic, the workers and the disturbances until ctx ends.
func (s *soak) live(ctx context.Context) error {
	stopTraffic, err := s.startTraffic()
	if err != nil {
		return err
	}
	for i := range s.workers {
		w, err := s.startWorker(i)
		if err != nil {
			stopTraffic()
			return errors.Join(err, s.endWorkers())
		}
		s.ws = append(s.ws, w)
	}
	disturb, look := time.NewTicker(3*time.Second), time.NewTicker(10*time.Second)
	defer disturb.Stop()
	defer look.Stop()
	s.sample()
	for err == nil {
		select {
		case <-ctx.Done():
			err = s.endWorkers()
			stopTraffic()
			s.sample()
			return err
		case <-disturb.C:
			err = s.disturb()
		case now := <-look.C:
			s.sample()
			for _, f := range s.flows {
				f.age(now, patience)
			}
		}
	}
	stopTraffic()
	return errors.Join(err, s.endWorkers())
}

// startTraffic starts flows both ways, of both families. The returned function stops them and waits for the packets in
// flight.
func (s *soak) startTraffic() (stop func(), err error) {
	ends := []struct{ from, to *lab.Host }{{s.pair.A, s.pair.B}, {s.pair.B, s.pair.A}}
	for _, e := range ends {
		for _, addr := range []netip.Addr{e.to.Addr4(), e.to.Addr6(), e.to.Addr4()} {
			f := &flow{under: make(map[uint64]time.Time)}
			if f.to, err = e.to.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String()); err != nil {
				return nil, err
			}
			_ = f.to.(*net.UDPConn).SetReadBuffer(4 << 20)
			if f.from, err = e.from.Dial(context.Background(), "udp", f.to.LocalAddr().String()); err != nil {
				return nil, errors.Join(err, f.to.Close())
			}
			s.flows = append(s.flows, f)
		}
	}
	quit := make(chan struct{})
	var senders, receivers sync.WaitGroup
	for _, f := range s.flows {
		receivers.Go(f.receive)
	}
	senders.Go(func() {
		const tick = 5 * time.Millisecond
		t := time.NewTicker(tick)
		defer t.Stop()
		owed := 0.0
		for i := 0; ; {
			select {
			case <-quit:
				return
			case <-t.C:
			}
			for owed += float64(s.rate) * tick.Seconds(); owed >= 1; owed-- {
				s.flows[i%len(s.flows)].send()
				i++
			}
		}
	})
	return func() {
		close(quit)
		senders.Wait()
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline) && s.underWay() > 0; {
			time.Sleep(20 * time.Millisecond)
		}
		for _, f := range s.flows {
			f.from.Close()
			f.to.Close()
		}
		receivers.Wait()
		for _, f := range s.flows {
			f.age(time.Now(), 0)
		}
	}, nil
}

func (s *soak) underWay() (n int) {
	for _, f := range s.flows {
		f.mu.Lock()
		n += len(f.under)
		f.mu.Unlock()
	}
	return n
}

// worker is a process with handles.
type worker struct {
	number int
	cmd    *exec.Cmd
	in     io.Closer
	out    *bufio.Reader
}

func (s *soak) startWorker(number int) (*worker, error) {
	spec := workerSpec{Handles: 3, Seed: s.r.Uint64(), Engine: divert.EngineKernel}
	if number%3 == 2 {
		spec.Engine = divert.EngineInterpreter
	}
	for _, f := range s.flows {
		spec.Ports = append(spec.Ports, f.to.LocalAddr().(*net.UDPAddr).Port)
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	w := &worker{number: number, cmd: exec.Command("/proc/self/exe")}
	w.cmd.Env, w.cmd.Stderr = append(os.Environ(), workerEnv+"="+string(text)), os.Stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := w.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.in, w.out = in, bufio.NewReader(out)
	runtime.LockOSThread() // the kernel sends Pdeathsig when the thread that started the worker ends
	defer runtime.UnlockOSThread()
	return w, s.pair.A.Start(w.cmd)
}

// endWorkers ends all workers normally and adds their reports.
func (s *soak) endWorkers() (err error) {
	for _, w := range s.ws {
		w.in.Close()
	}
	for _, w := range s.ws {
		var sum workerSum
		if e := errors.Join(json.NewDecoder(w.out).Decode(&sum), w.cmd.Wait()); e != nil {
			s.trouble = append(s.trouble, fmt.Sprintf("worker %d: %v", w.number, e))
			continue
		}
		s.sum.Opened += sum.Opened
		s.sum.Changed += sum.Changed
		s.sum.Carried += sum.Carried
		s.sum.Copies += sum.Copies
		s.sum.Sent += sum.Sent
		s.sum.Foreign += sum.Foreign
		s.sum.Lost += sum.Lost
	}
	s.ws = nil
	return err
}

// allow records that packets sent between the time before now and the time after now may be lost.
func (s *soak) allow(why string, before, after time.Duration) {
	now := time.Now()
	s.windows = append(s.windows, window{now.Add(-before), now.Add(after), why, now})
}

// disturb disturbs the workers or their surroundings.
func (s *soak) disturb() error {
	i := s.r.IntN(len(s.ws))
	switch s.r.IntN(6) {
	case 0, 1:
		return s.kill(i)
	case 2:
		return s.pause(i)
	case 3:
		return s.flap()
	}
	return s.strangers()
}

// kill kills a worker with all its handles, and starts another.
func (s *soak) kill(i int) error {
	w := s.ws[i]
	s.allow("killed", 5*time.Second, 2*time.Second)
	if err := w.cmd.Process.Kill(); err != nil {
		return err
	}
	w.cmd.Wait() // its error only says that it was killed
	s.windows[len(s.windows)-1].to = time.Now().Add(2 * time.Second)
	s.kills++
	next, err := s.startWorker(w.number)
	if err == nil {
		s.ws[i] = next
	}
	return err
}

// pause stops a worker for a moment: matching packets wait, and none is lost.
func (s *soak) pause(i int) error {
	p := s.ws[i].cmd.Process
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	time.Sleep(300 * time.Millisecond)
	s.stops++
	return p.Signal(syscall.SIGCONT)
}

// flap takes the link down and up again. Packets sent meanwhile, and queued packets for the link, are lost.
func (s *soak) flap() error {
	s.allow("link down", 5*time.Second, 3*time.Second)
	s.flaps++
	link := s.pair.LinkB
	if err := link.SetUp(false); err != nil {
		return err
	}
	time.Sleep(50 * time.Millisecond)
	return link.SetUp(true)
}

// strangers changes nftables tables of another program, as container engines and firewalls do.
func (s *soak) strangers() error {
	s.foreign++
	return s.pair.A.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t := &nftables.Table{Name: "strangers", Family: nftables.TableFamilyINet, Flags: uint32(s.r.IntN(2))} // 1: dormant
		c.AddTable(t)
		c.DelTable(t)
		if s.r.IntN(2) == 0 {
			return c.Flush()
		}
		c.AddTable(t)
		priority := nftables.ChainPriority(s.r.IntN(600) - 300)
		for hook, name := range map[*nftables.ChainHook]string{nftables.ChainHookInput: "in", nftables.ChainHookOutput: "out", nftables.ChainHookPrerouting: "pre"} {
			chain := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &priority})
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}, &expr.Counter{}}})
		}
		return c.Flush()
	})
}
