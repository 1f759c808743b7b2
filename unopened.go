package divert

import (
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
)

// errUnopened is the error of every call on the zero Handle and the zero Queue.
var errUnopened = fmt.Errorf("%w: the handle was not opened; Open makes one", ErrInvalid)

// unopened is the engine of the zero Handle.
type unopened struct{}

var _ engine.Dropper = unopened{}

func (unopened) Recv(engine.Wait, []Packet) (int, error) { return 0, errUnopened }
func (unopened) Wake()                                   {}
func (unopened) Return([]Packet)                         {}
func (unopened) Send([]Packet) (int, error)              { return 0, errUnopened }
func (unopened) Accept([]Packet) (int, error)            { return 0, errUnopened }
func (unopened) Drop([]Packet) error                     { return errUnopened }
func (unopened) Shutdown(engine.How) error               { return errUnopened }
func (unopened) Close() error                            { return errUnopened }
func (unopened) SetLimits(engine.Limits) error           { return errUnopened }
func (unopened) SetFilter(*prog.Program) error           { return errUnopened }
func (unopened) Stats() (engine.Stats, error)            { return engine.Stats{}, errUnopened }
func (unopened) Description() string                     { return "not open" }
