package order

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// Filters of handles in the tests: of both classes, of one, and changes that narrow, widen and replace.
var filters = [][]Classes{{3}, {1}, {3, 1}, {1, 3}, {1, 2}}

// random makes up a scenario.
func random(r *rand.Rand, packets int) (sc Scenario) {
	for range MaxHandles {
		sc.Handles = append(sc.Handles, Handle{
			Kind: Kind(r.IntN(3)), Priority: int8(r.IntN(3)), Filters: filters[r.IntN(len(filters))], End: End(r.IntN(2)),
		})
	}
	for range packets {
		p := Packet{Class: uint8(r.IntN(2)), From: Host}
		if h := r.IntN(MaxHandles * 3); h < MaxHandles && sc.Handles[h].Kind == Divert {
			p.From = int8(h)
		}
		sc.Packets = append(sc.Packets, p)
	}
	return sc
}

// explore fails the test if a promise of a scenario does not hold.
func explore(t *testing.T, sc *Scenario, most int) {
	t.Helper()
	n, err := Explore(sc, most)
	if err != nil {
		t.Errorf("%+v: %d states: %v", *sc, n, err)
	}
	if testing.Verbose() {
		t.Logf("%d states", n)
	}
}

// both has packets of both classes, sent by the host.
var both = []Packet{{0, Host}, {0, Host}, {1, Host}}

// TestThreeHandlesAndThreePackets tries every interleaving of a handle of each kind with three packets, two with -short.
// DIVERT_LONG adds other kinds, handles that close instead of being killed, and equal priorities.
func TestThreeHandlesAndThreePackets(t *testing.T) {
	long := os.Getenv("DIVERT_LONG") != ""
	kinds := [][MaxHandles]Kind{{Divert, Sniff, Drop}}
	priorities := [][MaxHandles]int8{{2, 1, 0}}
	ends := [][MaxHandles]End{{Kill, Kill, Kill}}
	if long {
		kinds = append(kinds, [MaxHandles]Kind{Divert, Divert, Divert}, [MaxHandles]Kind{Sniff, Divert, Divert}, [MaxHandles]Kind{Divert, Divert, Drop})
		priorities = append(priorities, [MaxHandles]int8{1, 1, 1}, [MaxHandles]int8{1, 1, 0})
		ends = append(ends, [MaxHandles]End{Close, Close, Close}, [MaxHandles]End{Kill, Close, Close})
	}
	for _, k := range kinds {
		for _, p := range priorities {
			for _, e := range ends {
				t.Run(fmt.Sprint(k, p, e), func(t *testing.T) {
					sc := Scenario{Packets: both}
					if testing.Short() {
						sc.Packets = both[1:]
					}
					for i := range k {
						sc.Handles = append(sc.Handles, Handle{k[i], p[i], filters[0], e[i]})
					}
					explore(t, &sc, 100_000_000)
				})
			}
		}
	}
}

// TestChangesOfFilters tries every interleaving of handles that change their filters with two packets; DIVERT_LONG adds two
// handles with three packets.
func TestChangesOfFilters(t *testing.T) {
	for _, kind := range []Kind{Divert, Sniff, Drop} {
		for _, change := range filters[2:] {
			sc := Scenario{
				Handles: []Handle{{kind, 1, change, Close}, {Divert, 1, filters[1], Close}},
				Packets: []Packet{{0, Host}, {1, Host}},
			}
			if os.Getenv("DIVERT_LONG") != "" {
				sc.Packets = both
				sc.Handles[1].Filters = filters[4]
			}
			t.Run(fmt.Sprint(kind, change), func(t *testing.T) { explore(t, &sc, 100_000_000) })
		}
	}
}

// TestRandomScenarios tries every interleaving of random scenarios: most have one packet, a few have two.
func TestRandomScenarios(t *testing.T) {
	seed, ones, twos := rand.Uint64(), 20, 1
	if os.Getenv("DIVERT_LONG") != "" {
		ones, twos = 500, 50
	}
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range ones {
		sc := random(r, 1)
		explore(t, &sc, 10_000_000)
	}
	for range twos {
		sc := random(r, 2)
		if sc.Handles = sc.Handles[:2]; sc.Packets[0].From == 2 || sc.Packets[1].From == 2 {
			continue
		}
		explore(t, &sc, 100_000_000)
	}
}

// TestFaultsAreFound: whichever rule of the engine is broken, the model says which promise that breaks.
func TestFaultsAreFound(t *testing.T) {
	scenarios := []Scenario{
		{
			Handles: []Handle{{Divert, 1, filters[0], Close}, {Divert, 1, filters[4], Close}},
			Packets: []Packet{{0, Host}, {1, Host}},
		},
		{
			Handles: []Handle{{Divert, 2, filters[0], Kill}, {Divert, 1, filters[0], Close}, {Sniff, 0, filters[1], Close}},
			Packets: []Packet{{0, Host}},
		},
		{
			Handles: []Handle{{Divert, 2, filters[1], Kill}, {Divert, 1, filters[1], Close}, {Sniff, 0, filters[4], Close}},
			Packets: []Packet{{1, Host}, {0, 1}},
		},
	}
	for _, f := range Faults() {
		t.Run(f.String(), func(t *testing.T) {
			found := slices.ContainsFunc(scenarios, func(sc Scenario) bool {
				sc.Fault = f
				n, err := Explore(&sc, 10_000_000)
				var b *Broken
				if !errors.As(err, &b) {
					return false
				}
				t.Logf("after %d states: %v", n, b.Promise)
				return true
			})
			if !found {
				t.Error("every promise holds all the same: the model does not see this rule")
			}
		})
	}
}

// TestWalk: sequences of calls end, and a seed gives the same sequence again.
func TestWalk(t *testing.T) {
	for seed := range uint64(2000) {
		sc := random(rand.New(rand.NewPCG(seed, 1)), MaxPackets)
		calls, err := Walk(sc, rand.New(rand.NewPCG(seed, 2)))
		if err != nil {
			t.Fatalf("seed %d: %+v, after %v: %v", seed, sc, calls, err)
		}
		again, err := Walk(sc, rand.New(rand.NewPCG(seed, 2)))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(calls) {
			t.Fatalf("seed %d: another sequence the second time, %v", seed, err)
		}
		ends := map[Action]int{}
		for _, c := range calls {
			ends[c.Action]++
		}
		if ends[Open] != MaxHandles || ends[CloseIt]+ends[KillIt] != MaxHandles {
			t.Fatalf("seed %d: %v", seed, calls)
		}
	}
}
