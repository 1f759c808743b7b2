//go:build linux

package rules

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/packet"
)

// needed returns the rules of a chain that belong to no handle and have a use here.
func needed(c Chain) []fixed {
	return slices.DeleteFunc(c.fixed(), func(f fixed) bool { return !c.needed(f) })
}

// origin reports whether a handle has rules in the chain only once it has injected something.
func (c Chain) origin() bool { return c == InboundOrigin || c == ForwardOrigin || c == OutboundOrigin }

// gate reports whether a chain is there only where many handles are.
func (c Chain) gate() bool { return c == InboundGate || c == OutboundGate || c == OutboundCut }

// distinct returns the handles of a chain in order, each once for a run of its rules, and checks that the
// fixed rules stand where they belong.
func distinct(t *testing.T, c Chain, comments []string) (ids []string) {
	t.Helper()
	texts := func(fs []fixed) (s []string) {
		for _, f := range fs {
			if c.needed(f) {
				s = append(s, fixedComment[f])
			}
		}
		return s
	}
	first, last := texts(chains[c].head), texts(chains[c].tail)
	if !slices.Equal(first, comments[:min(len(first), len(comments))]) {
		t.Errorf("%s begins with %q, want %q", chains[c].name, comments, first)
	}
	closed := false
	for i, text := range comments {
		switch {
		case i < len(first):
		case slices.Contains(last, text):
			closed = true
		case closed && c == Forward: // the marks for "outbound"
		case closed:
			t.Errorf("%s: %q stands behind the closing rule: %q", chains[c].name, text, comments)
		case len(ids) == 0 || ids[len(ids)-1] != text:
			ids = append(ids, text)
		}
	}
	for _, f := range needed(c) {
		if n := len(comments) - len(slices.DeleteFunc(slices.Clone(comments), func(s string) bool { return s == fixedComment[f] })); n != 1 {
			t.Errorf("%s: %d rules %q", chains[c].name, n, fixedComment[f])
		}
	}
	return ids
}

// checkOrder reports chains whose handles are not those of entries in descending order of their keys.
func checkOrder(t *testing.T, h *lab.Host, entries []*Entry) {
	t.Helper()
	entries = slices.Clone(entries)
	slices.SortFunc(entries, func(a, b *Entry) int { return cmp.Compare(b.Key, a.Key) })
	var want []string
	for _, e := range entries {
		want = append(want, fmt.Sprintf("handle %x", e.ID))
	}
	all, counters := comments(t, h)
	for c := range numChains {
		got := distinct(t, c, all[c])
		if c == Defrag || c.origin() || c.gate() {
			continue
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", chains[c].name, got, want)
		}
	}
	if len(all[Defrag]) != 2 || len(counters) != len(entries) {
		t.Errorf("%d rules of reassembly, %d counters of %d handles", len(all[Defrag]), len(counters), len(entries))
	}
}

func TestHandlesStandInOrder(t *testing.T) {
	rows := []struct {
		name       string
		priorities []int16
	}{
		{"rising", []int16{-5, 0, 5}},
		{"falling", []int16{5, 0, -5}},
		// Came from a bug: the rule by which a handle without a program passes forwarded packets over stood
		// first in its chain, and the third handle before it.
		{"the last between the others", []int16{200, 100, 150}},
		{"equal", []int16{7, 7, 7}},
		{"extremes", []int16{30000, -30000, 0, 29999, -29999}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			h, ns := newHost(t)
			var entries []*Entry
			for i, p := range row.priorities {
				entries = append(entries, open(t, ns, uint64(i+1), p))
				checkOrder(t, h, entries)
			}
			closeAll(t, entries...)
			noTable(t, h)
		})
	}
	t.Run("random", func(t *testing.T) {
		h, ns := newHost(t)
		random := rand.New(rand.NewPCG(1, 2))
		var entries []*Entry
		for id := uint64(1); id <= 40; id++ {
			switch i := random.IntN(len(entries) + 1); {
			case len(entries) > 8 || i < len(entries) && random.IntN(3) == 0:
				i = random.IntN(len(entries))
				closeAll(t, entries[i])
				entries = slices.Delete(entries, i, i+1)
			default:
				entries = append(entries, open(t, ns, id, int16(random.IntN(5))))
			}
			if len(entries) > 0 {
				checkOrder(t, h, entries)
			}
		}
		closeAll(t, entries...)
		noTable(t, h)
	})
}

func TestReplaceKeepsThePlace(t *testing.T) {
	h, ns := newHost(t)
	entries := []*Entry{open(t, ns, 1, 3), open(t, ns, 2, 2), open(t, ns, 3, 1)}
	for _, e := range entries {
		if err := e.Replace(plain()); err != nil {
			t.Fatal(err)
		}
		checkOrder(t, h, entries)
	}
	if err := entries[1].Replace(nil); err != nil {
		t.Fatal(err)
	}
	all, counters := comments(t, h)
	if got := distinct(t, Outbound, all[Outbound]); !slices.Equal(got, []string{"handle 1", "handle 3"}) {
		t.Errorf("without its rules: %q", got)
	}
	if got := distinct(t, Handles, all[Handles]); len(got) != 3 || len(counters) != 3 {
		t.Errorf("a handle without rules is a handle still: %q, %q", got, counters)
	}
	owners, err := List(ns)
	if err != nil || len(owners) != 3 || owners[0].ID != 1 || owners[2].ID != 3 {
		t.Errorf("List: %v, %v", owners, err)
	}
	if want := entries[0].Owner; len(owners) > 0 {
		if want.Process = os.Getpid(); owners[0] != want {
			t.Errorf("List: %+v, want %+v", owners[0], want)
		}
	}
	if err := entries[1].Replace(plain()); err != nil {
		t.Fatal(err)
	}
	checkOrder(t, h, entries)
	closeAll(t, entries...)
	noTable(t, h)
}

func TestTheDeadAreBuried(t *testing.T) {
	for _, how := range []string{"by the next Open", "by the Close of another", "by Sweep"} {
		t.Run(how, func(t *testing.T) {
			h, ns := newHost(t)
			other := open(t, ns, 1, 0)
			cmd := startChild(t, h, 0xdead1, 0xdead2)
			if owners, err := List(ns); err != nil || len(owners) != 3 {
				t.Fatalf("List: %v, %v", owners, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			if owners, err := List(ns); err != nil || len(owners) != 1 {
				t.Fatalf("List names the dead: %v, %v", owners, err)
			}
			if all, counters := comments(t, h); len(all[Handles]) != 3 || len(counters) != 3 {
				t.Fatalf("List changes the table: %q", all)
			}
			switch how {
			case "by the next Open":
				next := open(t, ns, 2, 0)
				checkOrder(t, h, []*Entry{other, next})
				closeAll(t, next)
			case "by Sweep":
				if err := Sweep(ns); err != nil {
					t.Fatal(err)
				}
				checkOrder(t, h, []*Entry{other})
			}
			closeAll(t, other)
			noTable(t, h)
		})
	}
}

func TestSweepTakesTheTableOfTheDeadAway(t *testing.T) {
	h, ns := newHost(t)
	cmd := startChild(t, h, 1)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if err := Sweep(ns); err != nil {
		t.Fatal(err)
	}
	noTable(t, h)
	if err := Sweep(ns); err != nil {
		t.Errorf("Sweep where there is no table: %v", err)
	}
}

// dump reads the rules of a table of a host, without what the kernel numbers anew.
func dump(t *testing.T, h *lab.Host, name string) (rules []nftables.Rule) {
	t.Helper()
	nft(t, h, func(c *nftables.Conn) error {
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			return err
		}
		for _, chain := range chains {
			if chain.Table.Name != name {
				continue
			}
			rs, err := c.GetRules(chain.Table, chain)
			if err != nil {
				return err
			}
			for _, r := range rs {
				rules = append(rules, nftables.Rule{Exprs: r.Exprs, UserData: r.UserData, Handle: r.Handle})
			}
		}
		return nil
	})
	return rules
}

func TestTablesOfOthersStay(t *testing.T) {
	h, ns := newHost(t)
	theirs := &nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet}
	nft(t, h, func(c *nftables.Conn) error {
		c.AddTable(theirs)
		accept := nftables.ChainPolicyAccept
		chain := c.AddChain(&nftables.Chain{Name: "in", Table: theirs, Type: nftables.ChainTypeFilter, Policy: &accept,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(afterDefrag)})
		for i := range byte(3) {
			c.AddRule(&nftables.Rule{Table: theirs, Chain: chain, UserData: []byte{i, 200}, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: native(uint32(100 + i))},
				&expr.Verdict{Kind: expr.VerdictDrop},
			}})
		}
		return nil
	})
	before := dump(t, h, "theirs")
	if len(before) != 3 {
		t.Fatalf("%d rules", len(before))
	}
	e := open(t, ns, 1, 0)
	if err := e.Replace(nil); err != nil {
		t.Fatal(err)
	}
	closeAll(t, e)
	if after := dump(t, h, "theirs"); !reflect.DeepEqual(before, after) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	noTable(t, h)
}

// Came from a bug: userdata that is no list of entries was a panic.
func TestRulesOfOthersInTheTableStay(t *testing.T) {
	h, ns := newHost(t)
	e := open(t, ns, 1, 0)
	odd := [][]byte{{0}, {0, 255}, []byte("mine"), nil, {1, 0, 0, 200, 'x'}}
	nft(t, h, func(c *nftables.Conn) error {
		for _, data := range odd {
			c.InsertRule(&nftables.Rule{Table: table, Chain: Outbound.ref(), Exprs: []expr.Any{&expr.Counter{}}, UserData: data})
		}
		return nil
	})
	second := open(t, ns, 2, 1)
	if err := e.Replace(nil); err != nil {
		t.Fatal(err)
	}
	all, _ := comments(t, h)
	if n := len(all[Outbound]); n != len(odd)+3+len(needed(Outbound)) { // the second's three rules, and those of no handle
		t.Errorf("%d rules: %q", n, all[Outbound])
	}
	closeAll(t, e, second)
	noTable(t, h)
}

func TestOthersRemoveTheRules(t *testing.T) {
	rows := []struct {
		name   string
		change func(*nftables.Conn)
	}{
		{"the ruleset flushed", func(c *nftables.Conn) { c.FlushRuleset() }},
		{"the table deleted", func(c *nftables.Conn) { c.DelTable(table) }},
		{"the table flushed", func(c *nftables.Conn) {
			for c2 := range numChains {
				if !c2.gate() {
					c.FlushChain(c2.ref())
				}
			}
		}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			h, ns := newHost(t)
			e := open(t, ns, 1, 0)
			nft(t, h, func(c *nftables.Conn) error { row.change(c); return nil })
			rules := plain()
			if err := e.Replace(rules); !errors.Is(err, ErrGone) {
				t.Errorf("Replace: %v, want ErrGone", err)
			}
			if _, err := e.Matched(); row.name != "the table flushed" && !errors.Is(err, ErrGone) {
				t.Errorf("Matched: %v, want ErrGone", err)
			}
			if err := e.Replace(nil); err != nil {
				t.Errorf("Replace by nothing: %v", err)
			}
			next := open(t, ns, 2, 0)
			if err := e.Replace(rules); !errors.Is(err, ErrGone) {
				t.Errorf("Replace in the table of another: %v, want ErrGone", err)
			}
			all, _ := comments(t, h)
			for c := range numChains {
				if got := distinct(t, c, all[c]); c != Defrag && !c.origin() && !c.gate() && !slices.Equal(got, []string{"handle 2"}) {
					t.Errorf("%s: %q", chains[c].name, got)
				}
			}
			closeAll(t, e, next)
			noTable(t, h)
		})
	}
	for c := range Handles {
		for what, change := range map[string]func(*nftables.Conn){
			"flushed": func(conn *nftables.Conn) { conn.FlushChain(c.ref()) },
			"deleted": func(conn *nftables.Conn) {
				conn.FlushChain(c.ref())
				if c == ForwardOrigin {
					conn.FlushChain(Forward.ref()) // which jumps there
				}
				conn.DelChain(c.ref())
			},
		} {
			t.Run(chains[c].name+" "+what, func(t *testing.T) {
				h, ns := newHost(t)
				entries := []*Entry{open(t, ns, 1, 0), open(t, ns, 2, 1)}
				nft(t, h, func(conn *nftables.Conn) error { change(conn); return nil })
				for _, e := range entries {
					if err := e.Replace(plain()); err != nil {
						t.Fatal(err)
					}
				}
				checkOrder(t, h, entries)
				closeAll(t, entries...)
				noTable(t, h)
			})
		}
	}
}

// Came from a bug: the table that was made for a handle stayed when the kernel refused its rules.
func TestRefusedRulesLeaveNothing(t *testing.T) {
	h, ns := newHost(t)
	refused := []Rule{{Chain: Outbound, Program: 1 << 20, Action: ToQueue{Num: 0xfff0}}} // a descriptor that is none
	if e, err := enter(ns, Owner{ID: 1}, refused); err == nil {
		closeAll(t, e)
		t.Fatal("opened")
	}
	noTable(t, h)
	e := open(t, ns, 1, 0)
	if err := e.Replace(refused); err == nil {
		t.Error("replaced by rules that the kernel refuses")
	}
	checkOrder(t, h, []*Entry{e})
	closeAll(t, e)
	noTable(t, h)
}

// TestHandlesWithoutPackets put no chain into the path of packets; handles that come later do.
func TestHandlesWithoutPackets(t *testing.T) {
	h, ns := newHost(t)
	there := func() (hooked, others int) {
		do(t, h, func() error {
			now, err := snapshot()
			for c := range numChains {
				switch {
				case err != nil || !now.chains[c]:
				case chains[c].hook != nil:
					hooked++
				default:
					others++
				}
			}
			return err
		})
		return hooked, others
	}
	e, err := enter(ns, Owner{ID: 1, PID: os.Getpid(), Layer: uint8(packet.LayerSocket)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if hooked, others := there(); hooked != 0 || others != 3 {
		t.Errorf("%d chains in paths, %d others", hooked, others)
	}
	f := open(t, ns, 2, 0)
	if hooked, others := there(); hooked != 7 || others != 3 {
		t.Errorf("with a handle of NETWORK %d chains in paths, %d others", hooked, others)
	}
	closeAll(t, f, e)
	noTable(t, h)
}

func TestManyOpenAtOnce(t *testing.T) {
	h, ns := newHost(t)
	const n = 25
	var ids []uint64
	for i := range uint64(n) {
		ids = append(ids, 1000+i)
	}
	var wg sync.WaitGroup
	entries := make([]*Entry, n)
	for i := range entries {
		wg.Go(func() {
			var err error
			if entries[i], err = enter(ns, Owner{ID: uint64(i + 1)}, plain()); err != nil {
				t.Error(err)
			}
		})
	}
	cmd := startChild(t, h, ids...)
	wg.Wait()
	if t.Failed() {
		return
	}
	owners, err := List(ns)
	if err != nil || len(owners) != 2*n {
		t.Fatalf("%d handles, %v", len(owners), err)
	}
	keys := map[cursor.Key]uint64{}
	for _, o := range owners {
		if other, taken := keys[o.Key]; taken {
			t.Errorf("the handles %x and %x have the same key %d", o.ID, other, o.Key)
		}
		keys[o.Key] = o.ID
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for _, e := range entries {
		wg.Go(func() { closeAll(t, e) })
	}
	wg.Wait()
	noTable(t, h)
}

func TestWithoutRights(t *testing.T) {
	h, ns := newHost(t)
	err := h.Do(func() error {
		return lab.WithoutRights(func() error {
			e, err := enter(ns, Owner{ID: 1}, plain())
			if err == nil {
				err = errors.Join(errors.New("opened"), e.Close())
			}
			return err
		})
	})
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("%v, want os.ErrPermission and the capability's name", err)
	}
	noTable(t, h)
}
