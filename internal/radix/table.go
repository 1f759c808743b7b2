package radix

import (
	"math/rand/v2"
	"sync/atomic"
)

// The layout of a table, in words of 64 bits. An eBPF program reads it too: see package setmap.
//
// A table is an array of buckets of 128 bytes. The first is the header. A bucket holds four nodes, from the first on;
// nodes that find their bucket full go to one of the next Chain-1 buckets.
const (
	BucketWords = 16
	NodeWords   = 4
	Chain       = 4

	perBucket = BucketWords / NodeWords

	// The words of the header.
	WordChanges = 0 // number of changes; each counts after it has made its nodes and before it flips bits
	WordBuckets = 1 // number of buckets that a hash can select
	WordSeed    = 2
	WordZero    = 3 // always 0

	// The words of a node. The first is written last.
	WordLevel  = 0 // 0: no node. The first node of a bucket may also have Overflow.
	WordPrefix = 1 // the upper 64 bits, then the lower; those behind the prefix are 0
	WordBits   = 3

	Overflow  = 1 << 8 // a node that belongs here is in the next bucket
	levelMask = Overflow - 1
)

// The levels. IPv4 addresses have theirs above IPv4Levels.
const (
	Levels     = 21
	IPv4Levels = 16
)

// PrefixLen returns the length of a node's prefix, in bits.
func PrefixLen(level int) int { return 6*level - 4 }

// Mask returns the mask of a level's prefixes.
func Mask(level int) Value {
	n := PrefixLen(level)
	if n <= 64 {
		return Value{Hi: ^uint64(0) << (64 - n)}
	}
	return Value{Hi: ^uint64(0), Lo: ^uint64(0) << (128 - n)}
}

// Shift returns the number of bits by which to shift a value right, so that its lowest six bits are the number of its bit
// in a node of the level.
func Shift(level int) int { return 128 - PrefixLen(level) - 6 }

// masks and shifts are those of all levels.
var masks, shifts = func() (m [Levels + 1]Value, s [Levels + 1]int) {
	for l := 1; l <= Levels; l++ {
		m[l], s[l] = Mask(l), Shift(l)
	}
	return m, s
}()

// part returns the number of a value's bit in a node of the level.
func part(level int, v Value) uint {
	return uint(v.shifted(shifts[level]).Lo) & 63
}

// The factors of the hash. See Hash.
const (
	HashFirst  = 0x9E3779B97F4A7C15
	HashSecond = 0xC2B2AE3D27D4EB4F
)

// Hash returns 32 bits for a node.
func Hash(seed uint64, level int, prefix Value) uint32 {
	x := (prefix.Hi ^ seed) * HashFirst
	x ^= x >> 32
	x = ((x ^ prefix.Lo) + uint64(level)) * HashSecond
	x ^= x >> 29
	x *= HashFirst
	return uint32(x >> 32)
}

// Memory is the memory of a table: zeros at first. Kept keeps the words alive.
type Memory struct {
	Words []uint64
	Kept  any
}

// table is a table. Reading needs no lock; only one goroutine may write at a time.
type table struct {
	Memory
	buckets int // number of buckets that a hash can select
	nodes   int
}

// extraBuckets are those that no hash selects: the header, and the overflow of the last.
const extraBuckets = Chain

// newTable makes an empty table in memory for that many buckets, the extra ones included.
func newTable(m Memory) *table {
	t := &table{Memory: m, buckets: len(m.Words)/BucketWords - extraBuckets}
	m.Words[WordBuckets] = uint64(t.buckets)
	m.Words[WordSeed] = rand.Uint64()
	return t
}

// bucket returns the offset of a node's bucket.
func (t *table) bucket(level int, prefix Value) int {
	h := Hash(t.Words[WordSeed], level, prefix)
	return (1 + int(uint64(h)*uint64(t.buckets)>>32)) * BucketWords
}

// find returns the offset of a node, 0 if it does not exist.
func (t *table) find(level int, prefix Value) int {
	at := t.bucket(level, prefix)
	for range Chain {
		b := t.Words[at : at+BucketWords : at+BucketWords]
		first := atomic.LoadUint64(&b[WordLevel])
		is := first & levelMask
		for n := 0; ; {
			if is == 0 {
				return 0
			}
			if is == uint64(level) && b[n+WordPrefix+1] == prefix.Lo && b[n+WordPrefix] == prefix.Hi {
				return at + n
			}
			if n += NodeWords; n == BucketWords {
				break
			}
			is = atomic.LoadUint64(&b[n+WordLevel])
		}
		if first&Overflow == 0 {
			return 0
		}
		at += BucketWords
	}
	return 0
}

// insert adds a node that does not exist, and returns its offset, 0 if there is no room.
func (t *table) insert(level int, prefix Value, content uint64) int {
	home := t.bucket(level, prefix)
	for at := home; at < home+Chain*BucketWords; at += BucketWords {
		for n := at; n < at+BucketWords; n += NodeWords {
			if t.Words[n] != 0 {
				continue
			}
			t.Words[n+WordPrefix], t.Words[n+WordPrefix+1] = prefix.Hi, prefix.Lo
			atomic.StoreUint64(&t.Words[n+WordBits], content)
			atomic.StoreUint64(&t.Words[n+WordLevel], uint64(level))
			for full := home; full < at; full += BucketWords {
				atomic.StoreUint64(&t.Words[full], t.Words[full]|Overflow)
			}
			t.nodes++
			return n
		}
	}
	return 0
}

// node returns the level and the prefix of the node at an offset.
func (t *table) node(at int) (level int, prefix Value) {
	return int(t.Words[at+WordLevel] & levelMask), Value{t.Words[at+WordPrefix], t.Words[at+WordPrefix+1]}
}

// bits returns the bits of the node at an offset.
func (t *table) bits(at int) uint64 { return atomic.LoadUint64(&t.Words[at+WordBits]) }

func (t *table) setBits(at int, v uint64) { atomic.StoreUint64(&t.Words[at+WordBits], v) }

// contains looks a value up, and ignores concurrent changes.
func (t *table) contains(v Value) bool { return t.above(Levels+1, v) }

// above looks a value up in the nodes of levels below the limit.
func (t *table) above(limit int, v Value) bool {
	best, level, step := false, 0, 16
	if v.IsMapped() {
		level, step = IPv4Levels, 4
	}
	for ; step > 0; step >>= 1 {
		try := level + step
		if try >= limit {
			continue
		}
		m := &masks[try]
		if at := t.find(try, Value{v.Hi & m.Hi, v.Lo & m.Lo}); at != 0 {
			level, best = try, t.bits(at)>>part(try, v)&1 != 0
		}
	}
	return best
}

// changes returns the number of changes so far.
func (t *table) changes() uint64 { return atomic.LoadUint64(&t.Words[WordChanges]) }
