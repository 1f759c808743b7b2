//go:build linux

package codegen

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// Record precedes the bytes of a packet in the perf buffer of a sniffing program. In the buffer its
// members stand in this order, in host byte order. See Joiner.
type Record struct {
	Timestamp   int64  // the timestamp that the filter saw
	Length      uint32 // of the packet, in bytes
	Captured    uint32 // bytes of it that follow
	Device      uint32 // skb->ifindex
	Ingress     uint32 // skb->ingress_ifindex
	SegmentSize uint32 // of a packet that is still to be cut (GSO): payload bytes of each segment, else 0
	Tag         uint32 // Options.Tag
	Process     uint32 // with Options.Process, else 0; four unused bytes follow
}

// RecordSize is the size of a Record in bytes.
const RecordSize = 40

// MaxSnap is how many bytes of a packet stand in one sample at most. The size of a record in the
// perf buffer has 16 bits and is a multiple of 8 (struct perf_event_header, member size); of the
// greatest, 65,528, the kernel takes 12 and the Record its own size.
//
// A packet may be longer, 65,575 bytes. If a program copies whole packets, the end of such a packet comes
// in a sample of its own just before; Joiner puts them together.
const MaxSnap = 65528 - 12 - RecordSize

// tailSize is the length of the end of a long packet that comes before it, in bytes: at least
// the missing part of the longest.
const tailSize = 104

// DecodeRecord reads a record.
func DecodeRecord(b *[RecordSize]byte) Record {
	ne := binary.NativeEndian
	return Record{
		Timestamp:   int64(ne.Uint64(b[:])),
		Length:      ne.Uint32(b[8:]),
		Captured:    ne.Uint32(b[12:]),
		Device:      ne.Uint32(b[16:]),
		Ingress:     ne.Uint32(b[20:]),
		SegmentSize: ne.Uint32(b[24:]),
		Tag:         ne.Uint32(b[28:]),
		Process:     ne.Uint32(b[32:]),
	}
}

// End reports whether the sample is the end of a packet that comes in one of the next.
func (r *Record) End() bool { return r.Captured == 0 && r.Length > MaxSnap }

// decodeRecord splits a sample of the perf buffer into its record and what follows.
func decodeRecord(sample []byte) (r Record, rest []byte, err error) {
	if len(sample) < RecordSize {
		return r, nil, fmt.Errorf("codegen: a record of %d bytes, need %d", len(sample), RecordSize)
	}
	r, rest = DecodeRecord((*[RecordSize]byte)(sample)), sample[RecordSize:]
	if uint64(len(rest)) < uint64(r.Captured) || r.Captured > r.Length {
		return r, nil, fmt.Errorf("codegen: a record of %d of %d bytes has %d", r.Captured, r.Length, len(rest))
	}
	return r, rest, nil
}

// Joiner decodes the samples of perf buffers. Its zero value is ready; it must not be used by several
// goroutines at once. The samples of a CPU must come in their order.
type Joiner struct {
	tails [16]tail // those of packets that have not come yet; the oldest is overwritten
	next  int
	buf   []byte
}

// tail is the end of a long packet.
type tail struct {
	record Record
	bytes  [tailSize]byte
}

// Decode decodes a sample. It is not ok if the sample was the end of a packet that comes later.
// The packet has Record.Captured bytes. Its memory is that of the sample or, if it has more than MaxSnap, of the
// Joiner, which uses it again in the next call. The error says that the sample is too short for what it claims to hold.
func (j *Joiner) Decode(sample []byte) (r Record, packet []byte, ok bool, err error) {
	r, rest, err := decodeRecord(sample)
	if err != nil {
		return r, nil, false, err
	}
	if r.End() {
		if len(rest) < tailSize {
			return r, nil, false, fmt.Errorf("codegen: the end of a packet has %d bytes, need %d", len(rest), tailSize)
		}
		t := &j.tails[j.next]
		j.next = (j.next + 1) % len(j.tails)
		t.record = r
		copy(t.bytes[:], rest)
		return r, nil, false, nil
	}
	packet = rest[:r.Captured:r.Captured]
	if missing := r.Length - r.Captured; r.Captured == MaxSnap && missing > 0 && missing <= tailSize {
		packet = j.join(&r, packet, int(missing))
	}
	return r, packet, true, nil
}

// join appends the missing part of a packet, if its end has come.
func (j *Joiner) join(r *Record, packet []byte, missing int) []byte {
	want := *r
	want.Captured = 0
	for i := range j.tails {
		t := &j.tails[i]
		if t.record != want {
			continue
		}
		t.record = Record{}
		j.buf = append(append(j.buf[:0], packet...), t.bytes[tailSize-missing:]...)
		r.Captured = r.Length
		return j.buf
	}
	return packet
}

// Time is the record of a program with Options.Correlate about a matching packet.
type Time struct {
	Hash      uint64 // of the packet, seed 0
	Timestamp int64  // the timestamp that the filter saw
	Process   uint32 // with Options.Process, else 0

	SegmentSize uint32 // with Options.Flow, of a superpacket: payload bytes of each segment; else 0
	Length      uint32 // with Options.Flow: of the packet, in bytes; else 0; four unused bytes follow
	Flow        uint64 // with Options.Flow: packet.Parsed.FlowHash; else 0
}

// TimeSize is the size of a Time in the ring buffer, in bytes.
const TimeSize = 40

// DecodeTime reads a sample of the ring buffer.
func DecodeTime(sample []byte) (Time, error) {
	if len(sample) < TimeSize {
		return Time{}, fmt.Errorf("codegen: a time of %d bytes, need %d", len(sample), TimeSize)
	}
	ne := binary.NativeEndian
	return Time{
		Hash: ne.Uint64(sample), Timestamp: int64(ne.Uint64(sample[8:])),
		Process: ne.Uint32(sample[16:]), SegmentSize: ne.Uint32(sample[20:]), Length: ne.Uint32(sample[24:]),
		Flow: ne.Uint64(sample[32:]),
	}, nil
}

// Counter has the counts of a program.
type Counter struct {
	Matched uint64 // packets that matched
	Failed  uint64 // copies and times that found no room
}

const counterSize = 16

// regCounter holds the address of the CPU's Counter at the end of a program.
const regCounter = asm.R7

// flagReadOnlyProgram is BPF_F_RDONLY_PROG (since Linux 5.2).
const flagReadOnlyProgram = 1 << 7

// ringNoWakeup is BPF_RB_NO_WAKEUP (since Linux 5.8).
const ringNoWakeup = 1

// skbGSOSegs is the offset of gso_segs in struct __sk_buff (since Linux 5.1).
const skbGSOSegs int16 = 164

// skbGSOSize is the offset of gso_size in struct __sk_buff (since Linux 5.7).
const skbGSOSize int16 = 176

// count counts a match.
func (g *generator) count() {
	if !g.options.Count {
		return
	}
	g.onlyValue(counterMap)
	found := g.NewLabel()
	g.JumpImm64(asm.JNE, asm.R0, 0, found)
	g.Emit(asm.Mov.Imm(asm.R0, 0), asm.Return()) // cannot be: the key exists
	g.Mark(found)
	g.Emit(asm.Mov.Reg(regCounter, asm.R0))
	if !g.options.Segments {
		g.increment(0)
		return
	}
	none := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R2, regContext, skbGSOSegs, asm.Word))
	g.JumpImm32(asm.JEq, asm.R2, 0, none)
	g.Emit(
		asm.Sub.Imm(asm.R2, 1),
		asm.LoadMem(asm.R1, regCounter, 0, asm.DWord),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.StoreMem(regCounter, 0, asm.R1, asm.DWord),
	)
	g.Mark(none)
}

// onlyValue leaves the address of an array's only value in R0; to the verifier it may be 0.
func (g *generator) onlyValue(theMap string) {
	g.Emit(asm.StoreImm(regFrame, varKey, 0, asm.Word))
	g.LookUp(theMap, varKey)
}

// increment adds 1 to a member of the counter.
func (g *generator) increment(offset int16) {
	g.Emit(
		asm.LoadMem(asm.R1, regCounter, offset, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(regCounter, offset, asm.R1, asm.DWord),
	)
}

// countFailure counts a failed call.
func (g *generator) countFailure() {
	if !g.options.Count {
		return
	}
	fine := g.NewLabel()
	g.JumpImm32(asm.JEq, asm.R0, 0, fine)
	g.increment(8)
	g.Mark(fine)
}

// timestamp leaves the timestamp in R1. It uses R5.
func (g *generator) timestamp() {
	g.Emit(asm.LoadMem(asm.R1, regFrame, varTime, asm.DWord))
	g.flipSign(asm.R1)
}

// correlate sends the hash, the timestamp and the process (bpf_ringbuf_output, since Linux 5.8).
func (g *generator) correlate() {
	if !g.options.Correlate {
		return
	}
	// The hash takes the registers, the address of the counter waits in the frame.
	if g.options.Count {
		g.Emit(asm.StoreMem(regFrame, varZero, regCounter, asm.DWord))
	}
	g.Emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, frameRecord+32, asm.R1, asm.DWord),
	)
	if g.options.Flow {
		g.parser.flowHash()
		g.Emit(asm.StoreMem(regFrame, frameRecord+32, asm.R0, asm.DWord))
		g.parser.forgetChecksum()
		g.Emit(asm.Mov.Imm(asm.R1, 0))
	}
	g.parser.hash()
	g.Emit(asm.StoreMem(regFrame, frameRecord, asm.R0, asm.DWord))
	g.timestamp()
	g.Emit(
		asm.StoreMem(regFrame, frameRecord+8, asm.R1, asm.DWord),
	)
	g.tellProcess(frameRecord + 16)
	g.Emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, frameRecord+24, asm.R1, asm.DWord),
	)
	if g.options.Flow {
		g.Emit(
			asm.LoadMem(asm.R1, regContext, skbGSOSize, asm.Word),
			asm.StoreMem(regFrame, frameRecord+20, asm.R1, asm.Word),
			asm.LoadMem(asm.R1, regContext, skbLen, asm.Word),
			asm.StoreMem(regFrame, frameRecord+24, asm.R1, asm.Word),
		)
	}
	g.send(correlateMap, TimeSize, ringNoWakeup)
	if g.options.Count {
		g.Emit(asm.LoadMem(regCounter, regFrame, varZero, asm.DWord))
	}
	g.countFailure()
}

// send sends n bytes of the record to a ring buffer.
func (g *generator) send(buffer string, n, flags int32) {
	g.Emit(
		asm.LoadMapPtr(asm.R1, 0).WithReference(buffer),
		asm.Mov.Reg(asm.R2, regFrame),
		asm.Add.Imm(asm.R2, int32(frameRecord)),
		asm.Mov.Imm(asm.R3, n),
		asm.Mov.Imm(asm.R4, flags),
		asm.FnRingbufOutput.Call(),
	)
}

// sniff copies the packet out.
func (g *generator) sniff() {
	snap := g.options.Snap
	if snap == 0 || snap > MaxSnap {
		snap = MaxSnap
	}
	g.record()
	short := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R8, regContext, skbLen, asm.Word))
	g.JumpImm32(asm.JLE, asm.R8, snap, short)
	if snap == MaxSnap {
		g.tail()
	}
	g.Emit(asm.Mov.Imm(asm.R8, int32(snap)))
	g.Mark(short)
	g.Emit(
		asm.StoreMem(regFrame, frameRecord+12, asm.R8, asm.Word),
		asm.Mov.Reg(asm.R3, asm.R8),
	)
	g.output(RecordSize)
	g.countFailure() // once for a packet, whether its end found room or not
	g.ring()
}

// record writes the record, all but Captured.
func (g *generator) record() {
	g.timestamp()
	g.Emit(asm.StoreMem(regFrame, frameRecord, asm.R1, asm.DWord))
	for _, member := range [...]struct{ from, to int16 }{
		{skbLen, 8}, {skbIfindex, 16}, {skbIngressIfindex, 20}, {skbGSOSize, 24},
	} {
		g.Emit(
			asm.LoadMem(asm.R1, regContext, member.from, asm.Word),
			asm.StoreMem(regFrame, frameRecord+member.to, asm.R1, asm.Word),
		)
	}
	g.Emit(
		asm.Mov.Imm32(asm.R1, int32(g.options.Tag)),
		asm.StoreMem(regFrame, frameRecord+28, asm.R1, asm.Word),
	)
	g.tellProcess(frameRecord + 32)
}

// tellProcess stores the process, or 0, in 8 bytes of a record.
func (g *generator) tellProcess(at int16) {
	g.Emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, at, asm.R1, asm.DWord),
	)
	if g.options.Process {
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, varProcess, asm.Word),
			asm.StoreMem(regFrame, at, asm.R1, asm.Word),
		)
	}
}

// tail sends the end of a packet that is too long for one sample; its length is in R8.
func (g *generator) tail() {
	g.Emit(
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.Sub.Imm(asm.R2, tailSize),
	)
	g.loadBytes(frameRecord+RecordSize, tailSize)
	g.Emit(
		asm.Mov.Imm(asm.R3, 0),
		asm.StoreMem(regFrame, frameRecord+12, asm.R3, asm.Word),
	)
	g.output(RecordSize + tailSize)
}

// output sends n bytes of the record, and of the packet as many as R3 says: bpf_perf_event_output
// takes that number in the upper half of its flags (BPF_F_CTXLEN_MASK, 20 bits) and the buffer in
// the lower.
func (g *generator) output(n int32) {
	g.Emit(
		asm.LSh.Imm(asm.R3, 32),
		asm.LoadImm(asm.R1, 0xFFFFFFFF, asm.DWord), // BPF_F_CURRENT_CPU
		asm.Or.Reg(asm.R3, asm.R1),
		asm.Mov.Reg(asm.R1, regContext),
		asm.LoadMapPtr(asm.R2, 0).WithReference(packetsMap),
		asm.Mov.Reg(asm.R4, regFrame),
		asm.Add.Imm(asm.R4, int32(frameRecord)),
		asm.Mov.Imm(asm.R5, n),
		asm.FnPerfEventOutput.Call(),
	)
}
