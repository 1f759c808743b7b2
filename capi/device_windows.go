package main

// #include "shim.h"
import "C"

import (
	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/wincode"
	"github.com/opendivert/divert/internal/windows"
	"github.com/opendivert/divert/packet"
)

// dialects maps the environment's wish for the extended dialect to a dialect.
var dialects = map[bool]filter.Dialect{false: filter.Strict, true: filter.Extended}

// openFile opens a handle of the driver (specification: api.md 5). Its checks come in the order of the original; the
// driver checks the layer's flags.
func openFile(text string, layer uint32, priority int16, flags uint64, extended bool) (uintptr, code) {
	switch {
	case layer >= uint32(packet.NumLayers), flags&^uint64(engine.FlagsAll) != 0,
		flags&(engine.FlagSniff|engine.FlagDrop) == engine.FlagSniff|engine.FlagDrop,
		flags&(engine.FlagRecvOnly|engine.FlagSendOnly) == engine.FlagRecvOnly|engine.FlagSendOnly,
		priority < divert.LowestPriority, priority > divert.HighestPriority:
		return 0, invalidParameter
	}
	p, err := filter.Compile(text, packet.Layer(layer), dialects[extended])
	if err != nil {
		return 0, invalidParameter
	}
	file, err := windows.OpenFile(engine.Config{Program: (*prog.Program)(p), Priority: priority, Flags: flags})
	return file, code(wincode.Of(err))
}

//export divertOpen
func divertOpen(text *C.char, n C.size_t, layer C.UINT32, priority C.INT16, flags C.UINT64, extended C.BOOL, segments, hang C.int, out *C.uintptr_t) C.DWORD {
	if text == nil {
		return C.DWORD(invalidParameter)
	}
	const alone = engine.FlagSniff | engine.FlagDrop | engine.FlagSendOnly // no packet waits for the program
	if hang != 0 && layer <= C.UINT32(packet.LayerForward) && uint64(flags)&alone == 0 {
		return C.DWORD(wincode.Of(engine.ErrNotSupported))
	}
	file, result := openFile(string(textOf(text, n)), uint32(layer), int16(priority), uint64(flags), extended != 0)
	*out = C.uintptr_t(file)
	return C.DWORD(result)
}
