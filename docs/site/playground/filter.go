package playground

import (
	"errors"
	"strings"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/tcpdump"
	"github.com/opendivert/divert/packet"
)

// Answer describes a filter. Either Error is set, or the rest.
type Answer struct {
	Error   string   `json:"error"`   // the filter with carets under the wrong part, the reason and a hint, in lines
	Tcpdump string   `json:"tcpdump"` // the translation, if the filter is in tcpdump's language
	Notes   []string `json:"notes"`   // about Tcpdump

	Normal   string   `json:"normal"`  // the normal form
	Listing  string   `json:"listing"` // the program, one test per line
	Tests    int      `json:"tests"`
	Constant string   `json:"constant"` // set if the filter matches nothing, or everything
	Layers   []string `json:"layers"`   // layers that have all the filter's fields
	Object   string   `json:"object"`   // the object string
	NoObject string   `json:"noObject"` // why there is no object string
	Driver   string   `json:"driver"`   // why WinDivert's driver would refuse it

	Neighbour      string   `json:"neighbour"`      // the filter in tcpdump's language
	NeighbourNotes []string `json:"neighbourNotes"` // possible differences of Neighbour
	NoNeighbour    string   `json:"noNeighbour"`    // why there is no Neighbour

	program *filter.Program
}

// longest is the longest filter that is answered, in bytes: pages have to be drawn.
const longest = 1 << 16

// Ask compiles a filter for a layer and describes it.
func Ask(text string, layer packet.Layer, strict bool) Answer {
	if len(text) > longest {
		return Answer{Error: "A filter here has at most 65,536 bytes. The command takes 4 MiB."}
	}
	dialect := filter.Extended
	if strict {
		dialect = filter.Strict
	}
	p, err := filter.Compile(text, layer, dialect)
	if err != nil {
		return refused(text, err)
	}
	a := Answer{program: p, Tests: p.Len(), Listing: p.Listing(), Layers: layersOf(text, dialect)}
	if a.Normal, err = p.Format(); err != nil {
		a.Normal = err.Error()
	}
	if a.Object, err = p.Object(); err != nil {
		a.NoObject = reason(err)
	}
	if err := (*prog.Program)(p).DriverCheck(); err != nil {
		a.Driver = reason(err)
	}
	if n, err := tcpdump.Neighbour((*prog.Program)(p)); err != nil {
		a.NoNeighbour = reason(err)
	} else {
		a.Neighbour, a.NeighbourNotes = n.Filter, n.Notes
	}
	switch accepts, rejects := (*prog.Program)(p).Outcomes(); {
	case !accepts:
		a.Constant = "It matches nothing."
	case !rejects:
		a.Constant = "It matches everything at its layer."
	}
	return a
}

// refused answers for a filter that does not compile.
func refused(text string, err error) Answer {
	var f *filter.Error
	if !errors.As(err, &f) {
		return Answer{Error: err.Error()}
	}
	r, err := tcpdump.Convert(text)
	if err != nil {
		return Answer{Error: reasonOf(f.Snippet())}
	}
	return Answer{Error: reasonOf(f.WithoutHint().Snippet()), Tcpdump: r.Filter, Notes: r.Notes}
}

func reason(err error) string { return reasonOf(err.Error()) }

func reasonOf(text string) string { return strings.TrimPrefix(text, "filter: ") }

// layersOf returns the names of the layers at which a text is a valid filter.
func layersOf(text string, d filter.Dialect) (names []string) {
	for l := range packet.NumLayers {
		if _, err := filter.Compile(text, l, d); err == nil {
			names = append(names, l.String())
		}
	}
	return names
}
