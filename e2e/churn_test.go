//go:build linux

package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// churn describes a process that opens and closes handles at random until its standard input closes.
type churn struct {
	Engine  divert.Engine
	Handles int
	Port    int // of the flood; some handles divert or sniff its packets
	Seed    uint64
}

// churned is the report of such a process.
type churned struct {
	Opened  int
	Carried uint64 // foreign packets that were diverted and accepted
	Sniffed uint64
	Lost    uint64 // dropped by limits, abandoned or refused: must be 0
}

// churner is an open handle of a churn with its reader.
type churner struct {
	d     *divert.Handle
	flags divert.Flag
	done  chan error
}

// open opens a handle of a random kind and begins to read from it.
func (c *churn) open(r *rand.Rand) (*churner, error) {
	kind := []struct {
		filter string
		flags  divert.Flag
		layer  divert.Layer
	}{
		{filter: fmt.Sprintf("outbound and udp.DstPort == %d", c.Port)},
		{filter: fmt.Sprintf("udp and remotePort == %d", c.Port)},
		{filter: fmt.Sprintf("udp.DstPort == %d", c.Port), flags: divert.Sniff},
		{filter: "udp.DstPort == 9", flags: divert.Drop},
		{filter: "false"},
		{filter: "tcp"},
		{filter: "true", layer: divert.LayerForward},
		{filter: "inbound and udp", flags: divert.Fragments},
	}
	k := kind[r.IntN(len(kind))]
	d, err := divert.Open(k.filter, divert.WithFlags(k.flags), divert.WithLayer(k.layer), divert.WithEngine(c.Engine),
		divert.WithPriority(int16(r.IntN(2000)-999)), divert.WithQueueLength(16384), divert.WithQueueTime(16*time.Second),
		divert.WithQueueSize(32<<20))
	if err != nil {
		return nil, err
	}
	h := &churner{d: d, flags: k.flags, done: make(chan error, 1)}
	go func() { h.done <- h.read() }()
	return h, nil
}

// read accepts packets until the handle is shut down or its deadline passes.
func (h *churner) read() error {
	ps := make([]divert.Packet, 64)
	for {
		n, err := h.d.RecvBatch(ps)
		if err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, divert.ErrDropOnly) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.flags&divert.Sniff != 0 {
			continue
		}
		if _, err := h.d.AcceptBatch(ps[:n]); err != nil {
			return err
		}
	}
}

// close closes the handle: with drain it empties the queue first, otherwise it leaves waiting packets to Close.
func (h *churner) close(drain bool, sum *churned) error {
	var err error
	if drain {
		err = h.d.Shutdown(divert.ShutdownRecv)
	} else {
		err = h.d.SetReadDeadline(time.Unix(1, 0))
	}
	if err := errors.Join(err, <-h.done, h.d.Close()); err != nil {
		return err
	}
	s, err := h.d.Stats()
	if h.flags&divert.Sniff != 0 {
		sum.Sniffed += s.Received
		return err
	}
	sum.Carried += s.Received
	sum.Lost += s.DroppedFull + s.DroppedOld + s.DroppedLong + s.Lost + s.Abandoned + s.Failed
	return err
}

// run churns until stop is closed.
func (c *churn) run(stop <-chan struct{}) (sum churned, err error) {
	r := rand.New(rand.NewPCG(c.Seed, 0))
	open := make([]*churner, c.Handles)
	for {
		select {
		case <-stop:
			for _, h := range open {
				if h != nil {
					err = errors.Join(err, h.close(true, &sum))
				}
			}
			return sum, err
		case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
		}
		slot := &open[r.IntN(len(open))]
		if *slot == nil {
			if *slot, err = c.open(r); err != nil {
				return sum, err
			}
			sum.Opened++
		} else {
			h := *slot
			*slot = nil
			if err := h.close(r.IntN(2) == 0, &sum); err != nil {
				return sum, err
			}
		}
	}
}

func init() {
	children["churn"] = func() error {
		var c churn
		if err := json.Unmarshal([]byte(os.Getenv("DIVERT_TEST_CHURN")), &c); err != nil {
			return err
		}
		stop := make(chan struct{})
		go func() {
			io.Copy(io.Discard, os.Stdin)
			close(stop)
		}()
		fmt.Println("started")
		sum, err := c.run(stop)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(sum)
	}
}

// process is a churn in its own process.
type process struct{ *talkingChild }

// start starts a churn on a host.
func (c churn) start(t testing.TB, h *lab.Host) *process {
	t.Helper()
	spec, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	return &process{startTalking(t, h, childEnv+"=churn", "DIVERT_TEST_CHURN="+string(spec))}
}

// finish ends it normally.
func (p *process) finish(t testing.TB) (sum churned) {
	t.Helper()
	p.in.Close()
	err := json.NewDecoder(p.lines).Decode(&sum)
	if err := errors.Join(err, p.cmd.Wait()); err != nil {
		t.Errorf("a churning process: %v", err)
	}
	return sum
}

// kill ends it at once.
func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// witness is a passthru that records the numbers it sees, by flow. It has the lowest priority unless an option says
// otherwise.
type witness struct {
	d    *divert.Handle
	mu   sync.Mutex
	seen map[uint32]map[uint64]int
	w    *worker
}

func startWitness(t testing.TB, h *lab.Host, filter string, opts ...divert.Option) *witness {
	t.Helper()
	opts = append([]divert.Option{divert.WithPriority(divert.LowestPriority), divert.WithQueueLength(16384),
		divert.WithQueueTime(16 * time.Second), divert.WithQueueSize(32 << 20)}, opts...)
	x := &witness{d: openAt(t, h, filter, opts...), seen: map[uint32]map[uint64]int{}}
	x.w = batches(t, x.d, func(ps []divert.Packet) (int, error) {
		x.mu.Lock()
		for i := range ps {
			x.note(ps[i].Data)
		}
		x.mu.Unlock()
		return x.d.AcceptBatch(ps)
	})
	return x
}

// note records a datagram of a flood.
func (x *witness) note(b []byte) {
	f, n, ok := numbered(b)
	if !ok {
		return
	}
	if x.seen[f] == nil {
		x.seen[f] = map[uint64]int{}
	}
	x.seen[f][n]++
}

// churnHandles is the most handles that each of four churning processes has open.
const churnHandles = 13

// TestChurn: several processes open and close handles at random. Packets that cross the namespace are neither lost nor
// duplicated. Packets that no handle holds keep their order; a handle that holds packets, as all of the interpreter's
// do, returns some of them behind later packets once its rules are gone (specification: api.md 24).
func TestChurn(t *testing.T) {
	notInShort(t)
	t.Parallel()
	for _, own := range []bool{false, true} {
		t.Run(map[bool]string{false: "handles of other traffic", true: "handles of this traffic"}[own], func(t *testing.T) {
			eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
				engine := engineOf(t)
				f := startFlood(t, pair.A, pair.B, pair.B.Addr4(), 4, 20000, 250)
				x := startWitness(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", f.port()), e)
				from := x.surely(t, f)
				port := 9
				if own {
					port = f.port()
				}
				var ps []*process
				for i := range 4 {
					ps = append(ps, churn{Engine: engine, Handles: churnHandles, Port: port, Seed: uint64(i)}.start(t, pair.A))
				}
				time.Sleep(lasting(3 * time.Second))
				var all churned
				for _, p := range ps {
					all.add(p.finish(t))
				}
				s := f.finish()
				t.Logf("%d datagrams, %d overtaken; handles of others: %+v", s.sent, s.late, all)
				if s.lost != 0 || s.double != 0 || all.Lost != 0 {
					t.Errorf("%d lost, %d doubled; of handles %d", s.lost, s.double, all.Lost)
				}
				if s.late != 0 && !own && engine == divert.EngineKernel {
					t.Errorf("%d out of order", s.late)
				}
				finish(t, x.d, x.w)
				x.check(t, f, func(flow, n int) bool { return uint64(n) >= from[flow] })
				if st := stats(t, x.d); st.Failed != 0 || st.Abandoned != 0 || st.Matched != st.Received {
					t.Errorf("the witness: %+v", st)
				}
			})
		})
	}
}

// TestChurnWithKills: the churning processes are killed. Only packets held by dead processes are lost, and soon after
// each death the lowest handle sees everything again.
func TestChurnWithKills(t *testing.T) {
	notInShort(t)
	t.Parallel()
	const (
		window = 250                     // of each flow: more than the dead processes can hold
		soon   = 1500 * time.Millisecond // much longer than a watch takes
		before = 5 * time.Second         // much longer than a packet is in flight
	)
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		engine := engineOf(t)
		f := startFlood(t, pair.A, pair.B, pair.B.Addr4(), 4, 20000, window)
		x := startWitness(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", f.port()), e)
		from := x.surely(t, f)
		var ps []*process
		start := func(i int) *process {
			return churn{Engine: engine, Handles: churnHandles, Port: f.port(), Seed: uint64(i)}.start(t, pair.A)
		}
		for i := range 4 {
			ps = append(ps, start(i))
		}
		var kills []time.Time
		for end := time.Now().Add(lasting(6 * time.Second)); time.Now().Before(end); {
			time.Sleep(2 * time.Second)
			i := rand.IntN(len(ps))
			ps[i].kill()
			kills = append(kills, time.Now()) // it has certainly ended by now
			time.Sleep(soon)
			ps[i] = start(len(kills) + 4)
		}
		for _, p := range ps {
			p.finish(t)
		}
		s := f.finish()
		near := func(flow, n int, after time.Duration) bool {
			at := f.flows[flow].sent[n]
			for _, k := range kills {
				if at.After(k.Add(-before)) && at.Before(k.Add(after)) {
					return true
				}
			}
			return false
		}
		for i, missing := range s.missing {
			for _, n := range missing {
				if !near(i, int(n), 0) {
					t.Errorf("flow %d: datagram %d was lost, and no process was killed then", i, n)
					break
				}
			}
			if len(missing) > len(kills)*window {
				t.Errorf("flow %d: %d lost by %d kills", i, len(missing), len(kills))
			}
		}
		if s.double != 0 {
			t.Errorf("%d doubled", s.double)
		}
		t.Logf("%d datagrams, %d kills, %d lost, %d overtaken", s.sent, len(kills), s.lost, s.late)
		finish(t, x.d, x.w)
		missed := x.check(t, f, func(flow, n int) bool {
			if uint64(n) < from[flow] {
				return false
			}
			at := f.flows[flow].sent[n]
			for _, k := range kills {
				if at.After(k.Add(-before/5)) && at.Before(k.Add(soon)) {
					return false
				}
			}
			return true
		})
		t.Logf("%d passed the witness unseen around kills", missed)
	})
}

// add adds the report of another process.
func (c *churned) add(o churned) {
	c.Opened += o.Opened
	c.Carried += o.Carried
	c.Sniffed += o.Sniffed
	c.Lost += o.Lost
}

// engineOf returns the engine of a subtest of eachEngine.
func engineOf(t *testing.T) divert.Engine {
	for _, e := range engines {
		if slices.Contains(strings.Split(t.Name(), "/"), e.name) {
			return e.engine
		}
	}
	t.Fatalf("%s names no engine", t.Name())
	return 0
}

// surely returns for each flow the number from which the witness certainly sees it: it has seen the one before.
func (x *witness) surely(t testing.TB, f *flood) (from []uint64) {
	t.Helper()
	for i := range f.flows {
		last := uint64(0)
		eventually(t, fmt.Sprintf("the witness sees flow %d", i), func() bool {
			x.mu.Lock()
			defer x.mu.Unlock()
			for n := range x.seen[uint32(i)] {
				last = max(last, n)
			}
			return len(x.seen[uint32(i)]) > 0
		})
		from = append(from, last+1)
	}
	return from
}

// check compares the packets that the witness saw with those that arrived: no packet twice, and every packet for which
// must returns true. It returns the number of other packets that the witness did not see.
func (x *witness) check(t testing.TB, f *flood, must func(flow, n int) bool) (unseen int) {
	t.Helper()
	for i, fl := range f.flows {
		missed, double := 0, 0
		for _, n := range fl.arrived {
			switch seen := x.seen[uint32(i)][n]; {
			case seen > 1:
				double++
			case seen == 0 && must(i, int(n)):
				missed++
			case seen == 0:
				unseen++
			}
		}
		if missed != 0 || double != 0 {
			t.Errorf("flow %d: the lowest handle missed %d of %d and saw %d twice", i, missed, len(fl.arrived), double)
		}
	}
	return unseen
}
