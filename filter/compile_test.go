package filter

import (
	"errors"
	"fmt"
	"testing"

	"github.com/opendivert/divert/internal/vectors"
	"github.com/opendivert/divert/packet"
)

// vectorErrors are the names of error kinds in the vectors.
var vectorErrors = map[ErrorKind]string{
	ErrTooDeep:          "TOO_DEEP",
	ErrTooLong:          "TOO_LONG",
	ErrBadToken:         "BAD_TOKEN",
	ErrBadTokenForLayer: "BAD_TOKEN_FOR_LAYER",
	ErrUnexpectedToken:  "UNEXPECTED_TOKEN",
	ErrIndexOutOfBounds: "INDEX_OOB",
	ErrBadObject:        "BAD_OBJECT",
}

// compileResult compiles in the strict dialect and returns the object, or "ERROR at position".
func compileResult(text string, layer packet.Layer) string {
	p, err := compiled(text, layer, Strict)
	if err == nil {
		var object string
		if object, err = p.Object(); err == nil {
			return object
		}
	}
	var e *Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	return fmt.Sprintf("%s at %d", vectorErrors[e.Kind], e.Pos)
}

func TestVectorCompile(t *testing.T) {
	vectors.Run(t, "compile", func(row struct {
		Layer                 vectors.Layer
		Filter, Object, Error string
		OK                    bool
		Pos                   uint32
	}) error {
		layer := packet.Layer(row.Layer)
		want := row.Object
		if !row.OK {
			want = fmt.Sprintf("%s at %d", row.Error, row.Pos)
		}
		if got := compileResult(row.Filter, layer); got != want {
			return fmt.Errorf("%s %q: got %s, want %s", layer, row.Filter, got, want)
		}
		return nil
	})
}
