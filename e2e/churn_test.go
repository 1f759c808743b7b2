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

// churn is what a process does that opens and closes handles at random until its standard input ends.
type churn struct {
	Engine  divert.Engine
	Handles int
	Port    int // of the flood, whose packets some handles divert or sniff
	Seed    uint64
}

// churned is what such a process reports.
type churned struct {
	Opened  int
	Carried uint64 // packets of others that were diverted and accepted
	Sniffed uint64
	Lost    uint64 // dropped by limits, abandoned, or refused: must be none
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

// read accepts packets until the handle is shut down or its deadline is over.
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

// close closes it in one of two ways: it drains the queue first, or leaves to Close what waits.
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

// process is a churn in a process of its own.
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

// finish ends it in good order.
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

// witness is a passthru, of the lowest priority unless an option says otherwise, that notes the numbers it sees,
// by flow.
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

// note counts a datagram of a flood.
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

// churnHandles is how many handles each of four churning processes has open at most.
const churnHandles = 13

// TestChurn: handles are opened and closed at random by several processes. What crosses the namespace is neither
// lost nor doubled. Where the handles do not hold it, it keeps its order; a handle that does, as every one of the
// interpreter, gives some of it back behind what passes when its rules have gone (specification: api.md 24).
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

// TestChurnWithKills: the churning processes are killed. What is lost was held by the dead, and soon after
// each death the lowest handle sees everything again.
func TestChurnWithKills(t *testing.T) {
	notInShort(t)
	t.Parallel()
	const (
		window = 250                     // of each flow: more the dead cannot hold
		soon   = 1500 * time.Millisecond // much more than a watch takes
		before = 5 * time.Second         // much more than a packet is under way
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
			kills = append(kills, time.Now()) // when it has surely ended
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

// surely returns the number of each flow from which on the witness surely sees it: it has seen the one before.
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

// check compares what the witness saw with what arrived: none twice, and each that it must see. It returns how many
// others it did not see.
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
