//go:build !windows

package main

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// FuzzCalls makes sequences of calls on a handle and checks each result against the specification (api.md 6 to 11), with
// a model that only counts.
func FuzzCalls(f *testing.F) {
	f.Add([]byte{0, 10, 0, 40, 1, 0x2F, 2, 1, 3, 0x05, 4, 0, 5, 1, 1, 0x10, 6, 0})
	f.Add([]byte{0, 10, 0, 20, 0, 30, 1, 0x01, 1, 0x44, 5, 3, 2, 0, 4, 7, 1, 0xFF, 1, 0xFF, 6, 0, 1, 0, 3, 0x05, 4, 1, 5, 1, 2, 0})
	f.Add([]byte{3, 0x00, 3, 0x41, 3, 0x82, 3, 0x12, 4, 0, 4, 1, 4, 2, 4, 3, 4, 4, 4, 5, 5, 0, 5, 4, 5, 2, 2, 2})
	f.Fuzz(func(t *testing.T, calls []byte) {
		n := diverttest.New()
		d, err := n.Open("outbound", engine.DropWaits().(divert.Option), divert.WithQueueTime(mostTime*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		x := &called{t: t, network: n, h: newHandle(d)}
		for i, p := range params {
			x.values[i] = p.get(d)
		}
		calls = calls[:min(len(calls), 60)] // fewer packets than any queue holds
		for ; len(calls) >= 2; calls = calls[2:] {
			x.call(calls[0]%7, calls[1])
		}
		x.call(6, 0)
		x.rest()
	})
}

// mostTime is the longest queue time, in milliseconds (specification: api.md 1.1).
const mostTime = 16000

// called is a handle with its expected state.
type called struct {
	t       *testing.T
	network *diverttest.Network
	h       *handle
	values  [len(params)]uint64

	queue, held    [][]byte // packets waiting, and packets received and not delivered
	number         byte     // of packets
	noRecv, noSend bool
	closed         bool
	expects        int // packets that must have left the network
}

// want fails unless a call has returned the expected code.
func (x *called) want(what string, got, want code) {
	x.t.Helper()
	if got != want {
		x.t.Fatalf("%s answers %d, want %d", what, got, want)
	}
}

// numberedPacket makes a datagram of a size.
func numberedPacket(number byte, size int) []byte {
	b := make([]byte, packet.IPv4HeaderLen+packet.UDPHeaderLen+1+size)
	b[0], b[8], b[9], b[12], b[16] = 0x45, 64, packet.ProtocolUDP, 10, 10
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[24:], uint16(len(b)-packet.IPv4HeaderLen))
	b[28] = number
	packet.CalcChecksums(b, nil, 0)
	return b
}

// call makes a call.
func (x *called) call(what, arg byte) {
	switch what {
	case 0: // a packet comes
		x.number++
		b := numberedPacket(x.number, int(arg))
		if x.closed || x.noRecv {
			x.expects++
		} else {
			x.queue = append(x.queue, b)
		}
		x.network.Outbound(b, 1)
	case 1:
		x.recv(int(arg>>4)*40, 1+int(arg&0xF)%4)
	case 2:
		x.send(int(arg&3)+1, int(arg>>2&3))
	case 3:
		x.setParam(uint32(arg&0xF)%7, arg>>4)
	case 4:
		number := uint32(arg) % 7
		value, got := x.h.param(number)
		switch {
		case x.closed:
			x.want("param", got, badCommand)
		case number >= uint32(len(params)):
			x.want("param", got, invalidParameter)
		case got != success || value != x.values[number]:
			x.t.Fatalf("parameter %d is %d (%d), want %d", number, value, got, x.values[number])
		}
	case 5:
		how := uint32(arg) % 6
		got := x.h.shutdown(how)
		switch {
		case how == 0 || how > 3:
			x.want("shutdown", got, invalidParameter)
		case x.closed:
			x.want("shutdown", got, badCommand)
		default:
			x.want("shutdown", got, success)
			x.noRecv = x.noRecv || how&1 != 0
			x.noSend = x.noSend || how&2 != 0
		}
	case 6:
		if x.closed {
			return // the library has forgotten its number
		}
		x.want("close", x.h.close(), success)
		x.closed = true
		x.expects += len(x.queue) + len(x.held)
		x.queue, x.held = nil, nil
	}
}

// recv receives, unless the call would have to wait.
func (x *called) recv(room, most int) {
	if !x.closed && !x.noRecv && len(x.queue)+len(x.held) == 0 {
		return
	}
	d := delivery{buf: make([]byte, room), addrs: make([]byte, most*packet.AddressSize), max: most}
	got := x.h.recv(&d)
	switch {
	case x.closed:
		x.want("recv", got, badCommand)
		return
	case len(x.queue)+len(x.held) == 0:
		x.want("recv", got, noData)
		return
	}
	if len(x.held) == 0 {
		n := min(most, len(x.queue))
		x.held, x.queue = x.queue[:n:n], x.queue[n:]
	}
	size, count, want := 0, 0, success
	for count < most && len(x.held) > 0 && want == success {
		b := x.held[0]
		if len(b) > room-size {
			if count > 0 {
				break
			}
			want = insufficientBuffer
		}
		x.held = x.held[1:]
		if want != success && room == 0 {
			break
		}
		n := min(len(b), room-size)
		if string(d.buf[size:size+n]) != string(b[:n]) {
			x.t.Fatalf("recv delivers % x, want % x", d.buf[size:size+n], b[:n])
		}
		size += n
		count++
	}
	x.want("recv", got, want)
	if d.size != size || d.count != count {
		x.t.Fatalf("recv delivers %d packets in %d bytes, want %d in %d", d.count, d.size, count, size)
	}
}

// send sends new packets, the last of them cut.
func (x *called) send(packets, cut int) {
	var b, addrs []byte
	for range packets {
		b = append(b, numberedPacket(0xFF, 5)...)
		a := packet.Address{Layer: packet.LayerNetwork, Outbound: true, IPChecksum: true, TCPChecksum: true, UDPChecksum: true}
		addrs, _ = a.AppendBinary(addrs)
	}
	n, got := x.h.send(b[:len(b)-cut], addrs)
	switch {
	case x.closed:
		x.want("send", got, badCommand)
	case x.noSend:
		x.want("send", got, noData)
	case cut > 0:
		x.want("send", got, insufficientBuffer)
		x.expects += packets - 1
	default:
		x.expects += packets
		if x.want("send", got, success); n != len(b) {
			x.t.Fatalf("send has sent %d bytes of %d", n, len(b))
		}
	}
	if got != success && n != 0 {
		x.t.Fatalf("send fails with %d and has sent %d bytes", got, n)
	}
}

// setParam sets a parameter to one of its bounds, or beyond.
func (x *called) setParam(number uint32, choice byte) {
	bounds := map[uint32][2]uint64{
		0: {32, 16384},
		1: {mostTime - 1, mostTime}, // shorter times would make a slow test fail
		2: {65535, 33554432},
	}
	b, settable := bounds[number]
	value := [...]uint64{b[0], b[1], b[1] + 1, 0, 1 << 40, ^uint64(0)}[int(choice)%6]
	got := x.h.setParam(number, value)
	switch {
	case x.closed:
		x.want("setParam", got, badCommand)
	case !settable || value < b[0] || value > b[1]:
		x.want("setParam", got, invalidParameter)
	default:
		x.want("setParam", got, success)
		x.values[number] = value
	}
}

// rest checks the packets that left the network: those that the handle never took, sent, or gave back.
func (x *called) rest() {
	if n := len(x.network.Delivered()); n != x.expects {
		x.t.Fatalf("%d packets have gone on, want %d", n, x.expects)
	}
}
