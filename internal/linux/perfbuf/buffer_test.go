//go:build linux

package perfbuf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/codegen"
)

func TestMain(m *testing.M) { lab.Main(m) }

// made returns a buffer without a kernel, that begins at some position.
func made(size int, start uint64) *buffer {
	return &buffer{
		fd: -1, meta: &unix.PerfEventMmapPage{Data_head: start, Data_tail: start}, data: make([]byte, size),
		head: start, tail: start, released: start,
	}
}

// write writes a record as the kernel does, if there is room.
func (b *buffer) write(kind uint32, body []byte) bool {
	ne := binary.NativeEndian
	size := (headerSize + len(body) + 7) &^ 7
	if int(b.meta.Data_head-b.meta.Data_tail)+size > len(b.data) {
		return false
	}
	record := ne.AppendUint16(ne.AppendUint16(ne.AppendUint32(nil, kind), 0), uint16(size))
	record = append(append(record, body...), make([]byte, 7)...)[:size]
	for i, c := range record {
		b.data[(b.meta.Data_head+uint64(i))&uint64(len(b.data)-1)] = c
	}
	b.meta.Data_head += uint64(size)
	return true
}

// sample returns the sample that a program writes for a packet.
func sample(at int64, length uint32, packet string) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint64(nil, uint64(at))
	for _, word := range []uint32{length, uint32(len(packet)), 3, 4, 5, 6, 7, 0} {
		b = ne.AppendUint32(b, word)
	}
	return append(b, packet...)
}

// raw is the body of a record of a sample.
func raw(sample []byte) []byte {
	sample = append(sample, make([]byte, (4-len(sample)%8+8)%8)...) // as bpf_perf_event_output pads it
	return append(binary.NativeEndian.AppendUint32(nil, uint32(len(sample))), sample...)
}

func (b *buffer) writeSample(at int64, packet string) bool {
	return b.write(unix.PERF_RECORD_SAMPLE, raw(sample(at, uint32(len(packet)), packet)))
}

func lostRecord(n uint64) []byte {
	return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, 99), n)
}

// TestBufferWraps reads samples that begin at every position of a buffer, and so end beyond it.
func TestBufferWraps(t *testing.T) {
	const size = 512
	for start := uint64(1<<32 - 1024); start < 1<<32+1024; start += 8 {
		b := made(size, start)
		for i, text := range []string{"", "a", "some bytes of a packet", "0123456789abcdef0123456789"} {
			if !b.writeSample(int64(i), text) {
				t.Fatalf("no room for %q", text)
			}
			b.look()
			ok, lost, err := b.next()
			want := codegen.Record{Timestamp: int64(i), Length: uint32(len(text)), Captured: uint32(len(text)), Device: 3, Ingress: 4, SegmentSize: 5, Tag: 6, Process: 7}
			if !ok || lost != 0 || err != nil || b.record != want {
				t.Fatalf("at %d: %v, %d, %v, %+v", start, ok, lost, err, b.record)
			}
			got := make([]byte, b.size)
			b.copy(got, b.tail+sampleHead)
			if body := sample(int64(i), uint32(len(text)), text); !bytes.Equal(got[:len(body)], body) || len(got) >= len(body)+8 {
				t.Fatalf("at %d: %x, want %x", start, got, body)
			}
			b.tail += b.step
			b.release()
		}
		if ok, _, err := b.next(); ok || err != nil || b.tail != b.head || b.meta.Data_tail != b.head {
			t.Fatalf("at %d: %v, %v, read %d and released %d of %d", start, ok, err, b.tail, b.meta.Data_tail, b.head)
		}
	}
}

// TestBufferRecords reads records that are no samples, and broken ones.
func TestBufferRecords(t *testing.T) {
	whole := raw(sample(1, 3, "abc"))
	for _, row := range []struct {
		name  string
		write func(b *buffer)
		lost  uint64
		fails bool
		ok    bool
	}{
		{"nothing", func(*buffer) {}, 0, false, false},
		{"losses before a sample", func(b *buffer) {
			b.write(unix.PERF_RECORD_LOST, lostRecord(5))
			b.write(unix.PERF_RECORD_LOST, lostRecord(1<<40))
			b.writeSample(1, "abc")
		}, 5 + 1<<40, false, true},
		{"losses at the end", func(b *buffer) { b.write(unix.PERF_RECORD_LOST, lostRecord(7)) }, 7, false, false},
		{"short losses", func(b *buffer) { b.write(unix.PERF_RECORD_LOST, lostRecord(7)[:8]) }, 0, false, false},
		{"another kind", func(b *buffer) {
			b.write(unix.PERF_RECORD_COMM, whole)
			b.writeSample(1, "abc")
		}, 0, false, true},
		{"a sample of somebody else", func(b *buffer) {
			b.write(unix.PERF_RECORD_SAMPLE, raw(make([]byte, codegen.RecordSize-4)))
			b.write(unix.PERF_RECORD_SAMPLE, nil)
			b.writeSample(1, "abc")
		}, 0, false, true},
		{"a sample longer than its record", func(b *buffer) {
			b.write(unix.PERF_RECORD_SAMPLE, append(binary.NativeEndian.AppendUint32(nil, 0xffffffff), whole[4:]...))
			b.writeSample(1, "abc")
		}, 0, false, true},
		{"a size of none", func(b *buffer) { b.meta.Data_head += 8 }, 0, true, false},
		{"a size beyond what was written", func(b *buffer) {
			b.writeSample(1, "abc")
			b.meta.Data_head -= 8
		}, 0, true, false},
		{"an odd size", func(b *buffer) {
			b.writeSample(1, "abc")
			binary.NativeEndian.PutUint16(b.data[6:], 60)
		}, 0, true, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := made(4096, 0)
			row.write(b)
			b.look()
			ok, lost, err := b.next()
			if ok != row.ok || lost != row.lost || (err != nil) != row.fails {
				t.Errorf("%v, %d lost, %v", ok, lost, err)
			}
			if ok && b.record.Timestamp != 1 {
				t.Errorf("%+v", b.record)
			}
			if !ok && b.tail != b.head {
				t.Errorf("%d bytes are left", b.head-b.tail)
			}
		})
	}
}

// took returns the times of the samples that come up to the last Look.
func took(b *Buffers) (times []int64) {
	for {
		r, ok := b.Next()
		if !ok {
			return times
		}
		got := make([]byte, b.Size())
		where := b.Peek()
		b.Take(got)
		if where != nil && !bytes.Equal(where, got) {
			times = append(times, -r.Timestamp) // it lies elsewhere
		}
		if !bytes.Equal(got[codegen.RecordSize:][:r.Captured], fmt.Append(nil, r.Timestamp)) {
			times = append(times, -r.Timestamp) // not its bytes
		}
		times = append(times, r.Timestamp)
	}
}

// TestOrder reads buffers that take turns in the times of their samples: all up to the look come, in the order of their times.
func TestOrder(t *testing.T) {
	b := &Buffers{buffers: []*buffer{made(4096, 0), made(4096, 8), made(4096, 1<<40)}}
	step := func(name string, now int64, written [3][]int64, want ...int64) {
		t.Helper()
		for i, times := range written {
			for _, at := range times {
				if !b.buffers[i].writeSample(at, fmt.Sprint(at)) {
					t.Fatalf("%s: no room", name)
				}
			}
		}
		if err := b.Look(now); err != nil {
			t.Fatal(err)
		}
		packets, _ := b.Count()
		got := took(b)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if left, _ := b.Count(); packets-left != len(got) {
			t.Errorf("%s: %d packets before, %d taken, %d left", name, packets, len(got), left)
		}
		b.Release()
	}
	step("nothing", 1, [3][]int64{})
	step("one buffer", 9, [3][]int64{1: {3, 5, 7}}, 3, 5, 7)
	step("by turns", 19, [3][]int64{{10, 13, 16}, {11, 14}, {12, 15, 17}}, 10, 11, 12, 13, 14, 15, 16, 17)
	step("runs", 29, [3][]int64{{20, 21, 22}, {25, 26}, {23, 24}}, 20, 21, 22, 23, 24, 25, 26)
	step("what came after the look waits", 33, [3][]int64{{30, 34}, {33, 35}, {36}}, 30, 33)
	step("and then comes in its order", 40, [3][]int64{{}, {}, {37, 38}}, 34, 35, 36, 37, 38)
	step("equal times", 50, [3][]int64{{41, 41}, {41}, {40}}, 40, 41, 41, 41)
	step("a buffer that is not in order itself", 60, [3][]int64{{52, 51}, {53}, {}}, 52, 51, 53)
	step("only what came after", 60, [3][]int64{{}, {61}, {}})
	step("and that", 61, [3][]int64{}, 61)
}

// TestOrderAtRandom compares with sorting, in buffers that wrap many times.
func TestOrderAtRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	b := &Buffers{buffers: []*buffer{made(1024, 0), made(2048, 0), made(1024, 0), made(1024, 0)}}
	var clock int64
	var waiting, got []int64
	for turn := range 5000 {
		for range r.IntN(20) {
			clock += r.Int64N(3)
			if b.buffers[r.IntN(1+r.IntN(4))].writeSample(clock, fmt.Sprint(clock)) {
				waiting = append(waiting, clock)
			}
		}
		cut := clock - r.Int64N(5)
		if err := b.Look(cut); err != nil {
			t.Fatal(err)
		}
		if written, _ := b.Count(); written != len(waiting) || b.Written() < written*(sampleHead+codegen.RecordSize) {
			t.Fatalf("turn %d: %d in %d bytes, want %d", turn, written, b.Written(), len(waiting))
		}
		skipped := 0
		for range r.IntN(3) {
			if _, ok := b.Next(); ok {
				b.Skip()
				skipped++
			}
		}
		got = took(b)
		b.Release()
		n := 0
		for n < len(waiting) && waiting[n] <= cut {
			n++
		}
		if !slices.Equal(got, waiting[skipped:n]) {
			t.Fatalf("turn %d: %v, want %v", turn, got, waiting[skipped:n])
		}
		waiting = slices.Delete(waiting, 0, n)
	}
}

// TestCount counts the end of a long packet with the packet.
func TestCount(t *testing.T) {
	b := made(1<<18, 0)
	b.writeSample(1, "abc")
	b.write(unix.PERF_RECORD_SAMPLE, raw(sample(2, codegen.MaxSnap+10, "")))
	b.write(unix.PERF_RECORD_LOST, lostRecord(7))
	b.writeSample(3, "defgh")
	b.look()
	if packets, bytes := b.count(); packets != 2 || bytes != 8 || b.tail != 0 {
		t.Errorf("%d packets of %d bytes, read to %d", packets, bytes, b.tail)
	}
}

// FuzzBuffers reads buffers of any content.
func FuzzBuffers(f *testing.F) {
	b := made(256, 0)
	b.write(unix.PERF_RECORD_LOST, lostRecord(7))
	b.writeSample(4, "abc")
	f.Add(b.data, uint64(0), uint8(255))
	f.Add(make([]byte, 256), uint64(1<<63), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, start uint64, written uint8) {
		memory := make([]byte, 256)
		copy(memory, data)
		start &^= 7
		one := &buffer{meta: &unix.PerfEventMmapPage{Data_head: start + uint64(written)&^7, Data_tail: start}, data: memory, head: start, tail: start, released: start}
		other := made(256, 8)
		other.writeSample(5, "abc")
		bs := &Buffers{buffers: []*buffer{one, other}}
		_ = bs.Look(1<<63 - 1)
		packets, bytes := bs.Count()
		if bytes < 0 || packets > bs.Written()/(sampleHead+codegen.RecordSize) {
			t.Fatalf("%d packets of %d bytes in %d", packets, bytes, bs.Written())
		}
		n := 0
		for {
			r, ok := bs.Next()
			if !ok {
				break
			}
			if !r.End() {
				n++
			}
			dst := make([]byte, bs.Size())
			where := bs.Peek()
			bs.Take(dst)
			if where != nil && (string(where) != string(dst) || cap(where) != len(where)) {
				t.Fatalf("%x lies where %x was taken", where, dst)
			}
		}
		bs.Release()
		if n != packets || bs.Written() != 0 || one.meta.Data_tail != one.meta.Data_head {
			t.Fatalf("took %d of %d, %d bytes left", n, packets, bs.Written())
		}
	})
}

// TestPeek: a sample lies where it was written until it is released, and one that goes around the end of the memory has to be copied.
func TestPeek(t *testing.T) {
	one := made(256, 0)
	b := &Buffers{buffers: []*buffer{one}}
	around := 0
	for at := range int64(50) {
		text := strings.Repeat("s", int(at)) + fmt.Sprint(at)
		if !one.writeSample(at, text) {
			t.Fatal("no room")
		}
		if err := b.Look(at); err != nil {
			t.Fatal(err)
		}
		where := b.Peek()
		b.Skip()
		if where == nil {
			around++
		} else if got := string(where[codegen.RecordSize:][:len(text)]); got != text {
			t.Errorf("%q, want %q", got, text)
		}
		b.Release()
	}
	if around == 0 || around > 40 {
		t.Errorf("%d of 50 samples went around the end", around)
	}
}
