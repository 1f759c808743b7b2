//go:build linux

package rules

import (
	"errors"
	"math"
	"testing"

	"github.com/google/nftables/userdata"

	"github.com/opendivert/divert/internal/linux/cursor"
)

// owners are handles whose comments are as short and as long as comments get.
var owners = []Owner{
	{Key: cursor.NewKey(0, 0)},
	{ID: 0xabc, PID: 4711, Opened: 1e9, Queue: 40000, Port: 4712, Opening: true, Key: cursor.NewKey(-1, 7), Priority: -1, Layer: 1, Flags: 5},
	{
		ID: math.MaxUint64, PID: math.MaxInt32, Opened: math.MaxInt64,
		Key: cursor.NewKey(30000, 255), Priority: 30000, Layer: 255, Flags: math.MaxUint64,
		Queue: math.MaxUint16, Port: math.MaxUint32, Opening: true,
	},
	{ID: 1, PID: math.MinInt32, Opened: math.MinInt64, Key: cursor.NewKey(-30000, 0), Priority: -30000},
}

func TestOwnerInUserData(t *testing.T) {
	for _, o := range owners {
		data := o.userData()
		const most = 256 // NFT_USERDATA_MAXLEN of linux/netfilter/nf_tables.h, in bytes
		if len(data) > most {
			t.Errorf("%d bytes of userdata: %+v", len(data), o)
		}
		if got, ok := parseOwner(data); !ok || got != o {
			t.Errorf("%v, %+v, want %+v", ok, got, o)
		}
		// Behind entries of another type, as nft writes them.
		if got, ok := parseOwner(append(userdata.AppendUint32(nil, 9, 1), data...)); !ok || got != o {
			t.Errorf("behind another entry: %v, %+v, want %+v", ok, got, o)
		}
	}
}

func TestNoOwner(t *testing.T) {
	text := func(s string) []byte { return userdata.AppendString(nil, userdata.TypeComment, s) }
	const good = "divert handle=1 pid=2 opened=3 key=7680000 priority=0 layer=0 flags=0 queue=32768 port=5"
	if _, ok := parseOwner(text(good)); !ok {
		t.Fatal("the pattern of the rows is no owner")
	}
	rows := []struct {
		name string
		data []byte
	}{
		{"nothing", nil},
		{"one byte", []byte{0}},
		{"an entry longer than the data", []byte{0, 200, 'd'}},
		{"no list of entries", []byte("mine")},
		{"a comment of somebody else", text("accept ssh")},
		{"a rule in front of all handles", passing.userData()},
		{"the closing rule", closing.userData()},
		{"an empty comment", text("")},
		{"cut", text(good[:len(good)-2])},
		{"more behind it", text(good + " x")},
		{"a sign", text("divert handle=1 pid=+2 opened=3 key=7680000 priority=0 layer=0 flags=0 queue=32768 port=5")},
		{"a zero in front", text("divert handle=01 pid=2 opened=3 key=7680000 priority=0 layer=0 flags=0 queue=32768 port=5")},
		{"a key of another priority", text("divert handle=1 pid=2 opened=3 key=7680000 priority=1 layer=0 flags=0 queue=32768 port=5")},
		{"a key of more than 24 bits", text("divert handle=1 pid=2 opened=3 key=4294967295 priority=0 layer=0 flags=0 queue=32768 port=5")},
		{"a layer of more than 8 bits", text("divert handle=1 pid=2 opened=3 key=7680000 priority=0 layer=256 flags=0 queue=32768 port=5")},
		{"a queue of more than 16 bits", text("divert handle=1 pid=2 opened=3 key=7680000 priority=0 layer=0 flags=0 queue=65536 port=5")},
		{"opening twice", text(good + openingSuffix + openingSuffix)},
		{"another type of entry", userdata.AppendString(nil, 1, good)},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if o, ok := parseOwner(row.data); ok {
				t.Errorf("%+v", o)
			}
		})
	}
}

func FuzzParseOwner(f *testing.F) {
	for _, o := range owners {
		f.Add(o.userData())
	}
	f.Add([]byte("mine"))
	f.Add([]byte{1, 1, 0, 0, 200})
	f.Fuzz(func(t *testing.T, data []byte) {
		o, ok := parseOwner(data)
		opened, closed := passing.is(data), closing.is(data)
		if ok && (opened || closed) || opened && closed {
			t.Errorf("a rule of several: %q", data)
		}
		if !ok {
			if o != (Owner{}) {
				t.Errorf("no owner, but %+v", o)
			}
			return
		}
		if again, ok := parseOwner(o.userData()); !ok || again != o {
			t.Errorf("%q: %+v, read again %+v", data, o, again)
		}
	})
}

func TestKeys(t *testing.T) {
	all := func(n int) (subs []int) {
		for i := range n {
			subs = append(subs, i)
		}
		return subs
	}
	without := func(subs []int, out int) []int { return append(append([]int(nil), subs[:out]...), subs[out+1:]...) }
	rows := []struct {
		name  string
		taken []int // subs of the same priority
		want  int   // -1: none
	}{
		{"the first", nil, 0},
		{"the second", all(1), 1},
		{"the newest is the highest", []int{0, 9}, 10},
		{"a gap below the highest stays a gap", []int{5}, 6},
		{"the top", all(255), 255},
		{"the top is taken", []int{255}, 254},
		{"the highest gap", []int{255, 254, 250}, 253},
		{"the one gap", without(all(256), 17), 17},
		{"the gap at the bottom", without(all(256), 0), 0},
		{"crowded", all(256), -1},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			const priority = -42
			var x tx
			add := func(priority int16, sub int) {
				o := Owner{ID: uint64(priority)<<32 | uint64(sub), Priority: priority, Key: cursor.NewKey(priority, uint8(sub))}
				x.rules[Handles] = append(x.rules[Handles], owned(o, nil))
			}
			for _, sub := range row.taken {
				add(priority, sub)
			}
			add(priority+1, 200)
			add(priority-1, 255)
			key, err := x.newKey(priority)
			switch {
			case row.want < 0 && !errors.Is(err, ErrCrowded):
				t.Errorf("%d, %v, want ErrCrowded", key, err)
			case row.want >= 0 && (err != nil || key != cursor.NewKey(priority, uint8(row.want))):
				t.Errorf("%d, %v, want sub %d", key.Sub(), err, row.want)
			}
		})
	}
}

func TestHoldsPackets(t *testing.T) {
	// The lines are those of net/netfilter/nfnetlink_queue.c, seq_show.
	const empty = "    5   4711     0 2 65531     0     0        9  1\n"
	const held = "32768   4711    12 2 65531     0     0       99  1\n"
	rows := []struct {
		name, text string
		want       bool
	}{
		{"no queue", "", false},
		{"an empty queue", empty, false},
		{"a queue that holds packets", held, true},
		{"the second holds some", empty + held, true},
		{"neither does", empty + empty, false},
		{"a damaged line", "5 4711\n\n", false},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if got := holdsPackets(row.text); got != row.want {
				t.Errorf("%t", got)
			}
		})
	}
}
