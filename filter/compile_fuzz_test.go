package filter

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// negated returns the program with its ends exchanged, which is its true negation.
func negated(p *prog.Program) []prog.Test {
	swap := map[prog.Target]prog.Target{prog.Accept: prog.Reject, prog.Reject: prog.Accept}
	tests := slices.Clone(p.Tests())
	for i := range tests {
		if to, isEnd := swap[tests[i].Succ]; isEnd {
			tests[i].Succ = to
		}
		if to, isEnd := swap[tests[i].Fail]; isEnd {
			tests[i].Fail = to
		}
	}
	return tests
}

// FuzzCompile checks rules for the compiler that hold for any text: it does not panic, errors lie within the text, a text
// that both dialects accept means the same in both, and "not (…)" is the true negation.
func FuzzCompile(f *testing.F) {
	for _, row := range workedObjects {
		f.Add(row.filter, uint8(row.layer))
	}
	for _, row := range workedErrors {
		f.Add(row.filter, uint8(row.layer))
	}
	for _, row := range quirkEquals {
		f.Add(row.filter, uint8(row.layer))
	}
	for _, row := range extendedPrograms {
		f.Add(row.filter, uint8(row.layer))
	}
	for _, row := range extendedErrors {
		if len(row.filter) < 1000 {
			f.Add(row.filter, uint8(row.layer))
		}
	}
	for _, text := range []string{
		`iface == "eth0"`, `not iface in {"a", "b\"", "\x1b\\"} or tcp`, `process not in {"curl", "wget"}`, `iface != "`, `process == "\x`,
	} {
		f.Add(text, uint8(packet.LayerNetwork))
	}
	f.Fuzz(func(t *testing.T, text string, number uint8) {
		layer := packet.Layer(number % uint8(packet.NumLayers+1))
		strict, strictErr := compiled(text, layer, Strict)
		extended, extendedErr := compiled(text, layer, Extended)
		checkFuzzError(t, strictErr)
		if e := checkFuzzError(t, extendedErr); e != nil {
			if int64(e.Pos) > int64(len(text)) || !strings.HasPrefix(text[e.Pos:], e.Token) {
				t.Errorf("error at %d, token %q: %v", e.Pos, e.Token, e)
			}
			return
		}
		checkFuzzProgram(t, extended)
		if strictErr == nil {
			checkFuzzProgram(t, strict)
			checkSameMeaning(t, strict, extended)
		}
		if strings.HasPrefix(text, "@") {
			return
		}
		opposite, err := compiled("not ("+text+")", layer, Extended)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Kind != ErrTooDeep {
				t.Errorf("negation: %v", err)
			}
			return
		}
		if !slices.Equal(withSetTexts(opposite.Tests()), withSetTexts(negated(extended))) {
			t.Errorf("negation: got %s, want the opposite of %s", render(opposite), render(extended))
		}
	})
}

// checkFuzzError checks that an error can be shown, and returns it as an *Error.
func checkFuzzError(t *testing.T, err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error of type %T: %v", err, err)
	}
	if e.Kind == 0 || e.Error() == "" || strings.ContainsAny(e.Error(), "\n\r") || e.Snippet() == "" {
		t.Errorf("bad error: %q", e.Error())
	}
	return e
}

// checkFuzzProgram checks that a program can be executed.
func checkFuzzProgram(t *testing.T, p *prog.Program) {
	tests := p.Tests()
	if len(tests) == 0 {
		t.Fatal("no tests")
	}
	for i, test := range tests {
		for _, to := range []prog.Target{test.Succ, test.Fail} {
			if to != prog.Accept && to != prog.Reject && (int(to) <= i || int(to) >= len(tests)) {
				t.Fatalf("test %d of %d goes on at %d", i, len(tests), to)
			}
		}
		if test.Field == prog.FieldTrue || test.Field == prog.FieldFalse || test.Field.Info().Name == "" {
			t.Fatalf("test %d of field %d", i, test.Field)
		}
		if (test.Op == prog.OpIn || test.Op == prog.OpNotIn) != (test.Set != nil || test.Named != nil) {
			t.Fatalf("test %d: operator %d, set %v", i, test.Op, test.Set)
		}
	}
}

// originals maps our fields to the fields of the specification whose names they took over.
var originals = map[prog.Field]prog.Field{
	prog.FieldFlowLabel: prog.FieldIPv6FlowLabel, prog.FieldFamilyIP: prog.FieldIP, prog.FieldFamilyIPv6: prog.FieldIPv6,
}

// checkSameMeaning compares the tests of a text in both dialects, except for the documented differences.
func checkSameMeaning(t *testing.T, strict, extended *prog.Program) {
	want, got := slices.Clone(strict.Tests()), slices.Clone(extended.Tests())
	for i := range got {
		if f, ours := originals[got[i].Field]; ours {
			got[i].Field = f
		}
	}
	for i := range want {
		if want[i].Value == (prog.Value{}) && want[i].Field.Info().Kind == prog.KindSigned {
			want[i].Neg = false
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("extended: %s, strict: %s", render(extended), render(strict))
	}
}

// withSetTexts makes tests comparable, their sets too.
func withSetTexts(tests []prog.Test) []comparableTest {
	all := make([]comparableTest, len(tests))
	for i, t := range tests {
		if t.Set != nil {
			all[i].set = setText(t.Set)
		}
		if t.Named != nil {
			all[i].set = t.Named.String()
		}
		t.Set, t.Named = nil, nil
		all[i].Test = t
	}
	return all
}

type comparableTest struct {
	prog.Test
	set string
}
