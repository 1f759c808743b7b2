package divert

import (
	"context"
	"errors"
	"iter"
	"reflect"
	"testing"
	"time"

	"github.com/opendivert/divert/filter"
)

// TestZeroHandle calls every method of the zero Handle and the zero Queue: those that can fail do, with an error that says
// what to do, and none panics.
func TestZeroHandle(t *testing.T) {
	program, err := filter.Compile("true", LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	arguments := map[reflect.Type]reflect.Value{}
	for _, v := range []any{
		make([]byte, 100), &Packet{}, make([]Packet, 2), ShutdownBoth, "true", program, time.Second, 100, time.Now(),
	} {
		arguments[reflect.TypeOf(v)] = reflect.ValueOf(v)
	}
	ctx := reflect.ValueOf(context.WithoutCancel(t.Context()))
	for _, zero := range []any{&Handle{}, &Queue{}} {
		v := reflect.ValueOf(zero)
		for i := range v.NumMethod() {
			name := v.Type().Method(i).Name
			m := v.Method(i)
			var in []reflect.Value
			for k := range m.Type().NumIn() {
				switch arg, ok := arguments[m.Type().In(k)]; {
				case ok:
					in = append(in, arg)
				case ctx.Type().Implements(m.Type().In(k)):
					in = append(in, ctx)
				default:
					t.Fatalf("%s takes a %v: the test has none", name, m.Type().In(k))
				}
			}
			out := m.Call(in)
			last := out[len(out)-1].Interface()
			if seq, ok := last.(iter.Seq2[*Packet, error]); ok {
				for _, err := range seq {
					last = err
				}
			}
			_, fails := last.(error)
			if isError := m.Type().Out(m.Type().NumOut()-1) == reflect.TypeFor[error](); !fails && !isError {
				continue // a getter
			}
			if err, _ := last.(error); !errors.Is(err, errUnopened) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
