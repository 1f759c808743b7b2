package main

/*
#cgo CFLAGS: -DWINDIVERT_LIBRARY -Wall -Wextra
#cgo linux LDFLAGS: -pthread -ldl

#include "shim.h"
*/
import "C"

import (
	"errors"
	"strings"
	"sync"
	"unsafe"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/addrtext"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// memory returns a caller's buffer. It is nil for NULL whatever the length, and not nil for a buffer of length 0.
func memory(p unsafe.Pointer, n C.UINT) []byte {
	if p == nil {
		return nil
	}
	return unsafe.Slice((*byte)(p), n)
}

// textOf returns a caller's text, as the caller's memory.
func textOf(p *C.char, n C.size_t) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(p)), n) }

// truth returns a Go truth value in C's form.
func truth(b bool) C.BOOL {
	if b {
		return 1
	}
	return 0
}

//export divertHash
func divertHash(p unsafe.Pointer, n C.UINT, seed C.UINT64) C.UINT64 {
	room()
	return C.UINT64(packet.Hash(memory(p, n), uint64(seed)))
}

//export divertParse
func divertParse(p unsafe.Pointer, n C.UINT, out *C.struct_divert_parsed) C.BOOL {
	room()
	var found packet.Parsed
	if !found.Parse(memory(p, n)) {
		return 0
	}
	*out = C.struct_divert_parsed{
		ipv4: C.INT32(found.IPv4Off), ipv6: C.INT32(found.IPv6Off),
		icmp: C.INT32(found.ICMPOff), icmpv6: C.INT32(found.ICMPv6Off),
		tcp: C.INT32(found.TCPOff), udp: C.INT32(found.UDPOff),
		data: C.INT32(found.PayloadOff), data_len: C.UINT32(found.PayloadLen),
		total: C.UINT32(found.Length), protocol: C.UINT8(found.Protocol), truncated: C.UINT8(truth(found.Truncated)),
	}
	return 1
}

//export divertChecksums
func divertChecksums(p unsafe.Pointer, n C.UINT, addr unsafe.Pointer, flags C.UINT64) C.BOOL {
	room()
	if addr == nil {
		return truth(packet.CalcChecksums(memory(p, n), nil, packet.ChecksumFlags(flags)))
	}
	var a packet.Address
	b := memory(addr, packet.AddressSize)
	_ = a.UnmarshalBinary(b) // cannot fail with this length; nor can AppendBinary
	ok := packet.CalcChecksums(memory(p, n), &a, packet.ChecksumFlags(flags))
	_, _ = a.AppendBinary(b[:0])
	return truth(ok)
}

//export divertDecrementTTL
func divertDecrementTTL(p unsafe.Pointer, n C.UINT) C.BOOL {
	room()
	return truth(packet.DecrementTTL(memory(p, n)))
}

//export divertParseIPv4
func divertParseIPv4(text *C.char, n C.size_t, out *C.UINT32) C.BOOL {
	room()
	addr, ok := addrtext.ParseIPv4(textOf(text, n))
	*out = C.UINT32(addr)
	return truth(ok)
}

//export divertParseIPv6
func divertParseIPv6(text *C.char, n C.size_t, out *C.UINT32) C.BOOL {
	room()
	addr, ok := addrtext.ParseIPv6(textOf(text, n))
	*(*addrtext.Words)(unsafe.Pointer(out)) = addr
	return truth(ok)
}

//export divertFormatIPv4
func divertFormatIPv4(addr C.UINT32, buf *C.char, n C.UINT) C.DWORD {
	room()
	var text [15]byte
	return put(buf, n, addrtext.AppendIPv4(text[:0], uint32(addr)))
}

//export divertFormatIPv6
func divertFormatIPv6(addr *C.UINT32, buf *C.char, n C.UINT) C.DWORD {
	room()
	if addr == nil {
		return C.DWORD(invalidParameter)
	}
	var text [39]byte
	return put(buf, n, addrtext.AppendIPv6(text[:0], *(*addrtext.Words)(unsafe.Pointer(addr))))
}

// put writes a text to a caller's buffer (specification: packets.md 7).
func put[T string | []byte](buf *C.char, n C.UINT, text T) C.DWORD {
	if !putCString(memory(unsafe.Pointer(buf), n), text) {
		return C.DWORD(insufficientBuffer)
	}
	return C.DWORD(success)
}

// layerOf returns the layer with a number. The helpers accept numbers that are no layer (specification:
// filter-language.md 9): such a layer has no fields.
func layerOf(number C.UINT32) packet.Layer {
	return packet.Layer(min(number, C.UINT32(packet.NumLayers)))
}

//export divertCompile
func divertCompile(text *C.char, n C.size_t, layer C.UINT32, extended C.BOOL, object *C.char, objLen C.UINT, description **C.char, position *C.UINT) C.DWORD {
	room()
	kind, pos, result := compile(textOf(text, n), layerOf(layer), extended != 0, object, objLen)
	*description, *position = describe(kind), C.UINT(pos)
	return C.DWORD(result)
}

//export divertExplainError
func divertExplainError(text *C.char, n C.size_t, layer C.UINT32, extended C.BOOL, buf *C.char, bufLen C.UINT) C.DWORD {
	room()
	p, err := filter.Compile(string(textOf(text, n)), layerOf(layer), dialects[extended != 0])
	if err == nil && extended == 0 {
		err = (*prog.Program)(p).DriverCheck() // WinDivertOpen checks this too
	}
	var wrong *filter.Error
	switch {
	case err == nil:
		return put(buf, bufLen, "")
	case errors.As(err, &wrong):
		return put(buf, bufLen, strings.TrimPrefix(wrong.Snippet(), "filter: "))
	}
	return put(buf, bufLen, err.Error())
}

// compile is WinDivertHelperCompileFilter (specification: filter-language.md 9).
func compile(text []byte, layer packet.Layer, extended bool, object *C.char, objLen C.UINT) (filter.ErrorKind, uint32, code) {
	p, err := filter.Compile(string(text), layer, dialects[extended])
	if err == nil && object != nil {
		var s string
		if s, err = p.Object(); err == nil {
			if put(object, objLen, s) != C.DWORD(success) {
				return outputTooShort, 0, insufficientBuffer
			}
		}
	}
	if err == nil {
		return noError, 0, success
	}
	var wrong *filter.Error
	if errors.As(err, &wrong) {
		return wrong.Kind, wrong.Pos, invalidParameter
	}
	return filter.ErrBadToken, 0, invalidParameter // the extended dialect has it, the object form does not
}

// describing guards the texts to which programs have pointers. The texts are in C's memory, where leak checkers find
// them.
var describing sync.Mutex

// The error kinds that only the C interface has (specification: filter-language.md 8).
const (
	noError        filter.ErrorKind = 0
	outputTooShort filter.ErrorKind = 8
)

// ownTexts are the texts of these kinds.
var ownTexts = map[filter.ErrorKind]string{
	noError: "no error", outputTooShort: "the buffer is too small for the compiled filter",
}

// textOfKind returns the text of an error kind.
func textOfKind(kind filter.ErrorKind) string {
	if text, own := ownTexts[kind]; own {
		return text
	}
	return kind.String()
}

// describe returns the text of an error kind, which stays valid for ever.
func describe(kind filter.ErrorKind) *C.char {
	describing.Lock()
	defer describing.Unlock()
	text := &C.divert_descriptions[kind]
	if *text == nil {
		*text = C.CString(textOfKind(kind))
	}
	return *text
}

//export divertEval
func divertEval(text *C.char, n C.size_t, extended C.BOOL, p unsafe.Pointer, packetLen C.UINT, addr unsafe.Pointer, match *C.BOOL) C.DWORD {
	room()
	var a packet.Address
	_ = a.UnmarshalBinary(memory(addr, packet.AddressSize)) // cannot fail with that length
	if a.Layer >= packet.NumLayers {
		return C.DWORD(invalidParameter)
	}
	program, err := filter.Compile(string(textOf(text, n)), a.Layer, dialects[extended != 0])
	if err != nil {
		return C.DWORD(invalidParameter)
	}
	matches, err := program.Eval(memory(p, packetLen), &a)
	if err != nil {
		return C.DWORD(invalidParameter)
	}
	*match = truth(matches)
	return C.DWORD(success)
}

//export divertFormat
func divertFormat(text *C.char, n C.size_t, layer C.UINT32, extended C.BOOL, buf *C.char, bufLen C.UINT) C.DWORD {
	room()
	program, err := filter.Compile(string(textOf(text, n)), layerOf(layer), dialects[extended != 0])
	if err != nil {
		return C.DWORD(invalidParameter)
	}
	s, err := program.Format()
	if err != nil {
		return C.DWORD(insufficientBuffer) // longer than any buffer of a call
	}
	return put(buf, bufLen, s)
}
