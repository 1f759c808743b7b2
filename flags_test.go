package divert

import (
	"strings"
	"testing"
)

func TestFlagText(t *testing.T) {
	for f := range Flag(1 << 8) { // two bits have no name
		text, err := f.MarshalText()
		var got Flag
		if err != nil || got.UnmarshalText(text) != nil || got != f {
			t.Errorf("%v: %s, %v, %v", f, text, err, got)
		}
		if got.UnmarshalText([]byte(f.String())) != nil || got != f {
			t.Errorf("%v is %v", f, got)
		}
	}
	f := Drop
	if err := f.UnmarshalText([]byte("sniff | Recv_Only")); err != nil || f != Sniff|RecvOnly {
		t.Errorf("%v, %v", f, err)
	}
	if err := f.UnmarshalText(nil); err != nil || f != 0 {
		t.Errorf("%v, %v", f, err)
	}
	f = Drop
	for _, text := range []string{"snif", "sniff|", "-1", "sniff,drop"} {
		if err := f.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "sniff, drop, recv_only") || f != Drop {
			t.Errorf("%s: %v, %v", text, f, err)
		}
	}
}

func TestEngineText(t *testing.T) {
	for e := range Engine(len(engineWords)) {
		text, err := e.MarshalText()
		var got Engine
		if err != nil || string(text) != e.String() || got.UnmarshalText([]byte(strings.ToUpper(e.String()))) != nil || got != e {
			t.Errorf("%v: %s, %v, %v", e, text, err, got)
		}
	}
	e := EngineKernel
	if err := e.UnmarshalText([]byte("ebpf")); err == nil || err.Error() != `there is no engine "ebpf"; the engines are auto, kernel, interpreter` || e != EngineKernel {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := Engine(9).MarshalText(); err == nil || Engine(9).String() != "Engine(9)" {
		t.Errorf("%v, %v", Engine(9), err)
	}
}
