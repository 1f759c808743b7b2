package main

import (
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/spf13/cobra"
)

// jsonText is a filter as `filter format` and `filter from-tcpdump` print it.
type jsonText struct {
	Filter string   `json:"filter"`
	Notes  []string `json:"notes,omitempty"` // differences that remain, for a filter of tcpdump
}

// jsonObject is an object string as `filter object` prints it.
type jsonObject struct {
	Object string `json:"object"`
}

// jsonCheck is the result of `filter check` for a filter that compiles; for others, standard error has the error.
type jsonCheck struct {
	Filter  string `json:"filter"` // as given
	Layer   string `json:"layer"`
	Tests   int    `json:"tests"`             // number of tests in the program
	Matches string `json:"matches,omitempty"` // "nothing" or "everything", for a filter whose result does not depend on the packet
	Driver  string `json:"driver,omitempty"`  // why WinDivert's driver would refuse it
}

func newJSONCheck(text string, p *filter.Program) jsonCheck {
	j := jsonCheck{Filter: text, Layer: word(p.Layer()), Tests: p.Len()}
	switch accepts, rejects := (*prog.Program)(p).Outcomes(); {
	case !accepts:
		j.Matches = "nothing"
	case !rejects:
		j.Matches = "everything"
	}
	if err := (*prog.Program)(p).DriverCheck(); err != nil {
		j.Driver = plain(err)
	}
	return j
}

// jsonExplanation is the output of `filter explain`.
type jsonExplanation struct {
	jsonCheck
	Normal  string     `json:"normal"` // the filter in its normal form
	Program []jsonTest `json:"program"`
	AtMost  string     `json:"at_most"` // the most that the filter can match, in words
	Layers  []string   `json:"layers"`  // layers at which the filter is valid
}

// jsonTest is a test of a program. The evaluation begins with the first one.
type jsonTest struct {
	Index int    `json:"index"` // numbered from 0
	Test  string `json:"test"`
	Yes   int    `json:"yes"` // the next test if this one holds; -1: the filter matches, -2: it does not match
	No    int    `json:"no"`  // the next test if this one fails, in the same form
}

func newJSONExplanation(text string, p *filter.Program, flags *dialectFlags) (*jsonExplanation, error) {
	taken, err := flags.sets.take(text)
	if err != nil {
		return nil, err
	}
	normal, err := p.Format()
	if err != nil {
		return nil, err
	}
	j := &jsonExplanation{jsonCheck: newJSONCheck(text, p), Normal: normal, AtMost: hintText(p), Layers: layersFor(taken, flags.dialect())}
	for i, t := range (*prog.Program)(p).Tests() {
		j.Program = append(j.Program, jsonTest{i, t.Text(), int(t.Succ), int(t.Fail)})
	}
	return j, nil
}

// jsonField is a field as `filter fields` prints it.
type jsonField struct {
	Name   string   `json:"name"`
	Index  bool     `json:"index,omitempty"` // the field takes an index: name[i]
	Kind   string   `json:"kind"`
	Min    string   `json:"min"` // the least value, as filters write it
	Max    string   `json:"max"`
	Layers []string `json:"layers"`
	Doc    string   `json:"doc"`
}

func newJSONField(f filter.FieldInfo) jsonField {
	return jsonField{f.Name, f.Kind == filter.KindBytes, f.Kind.String(), f.Min, f.Max, wordsOf(f.Layers), f.Doc}
}

// jsonResult is the output of `filter eval` for a packet.
type jsonResult struct {
	Packet  int        `json:"packet"` // numbered from 1
	Matches bool       `json:"matches"`
	Steps   []jsonStep `json:"steps,omitempty"` // with -v
}

// jsonStep is a test that was executed.
type jsonStep struct {
	Index  int    `json:"index"` // in the program, numbered as by `filter explain`
	Test   string `json:"test"`
	Value  string `json:"value"` // of the field, as filters write it; "absent" if the packet has none
	Result bool   `json:"result"`
}

// addJSON adds the flag --json to a command whose whole output becomes JSON with it.
func addJSON(cmd *cobra.Command, asJSON *bool, what string) {
	cmd.Flags().BoolVar(asJSON, "json", false, what+"; errors as JSON too")
}

// jsonRemoved is something that `clean` removed: a handle of a process that died, or on Windows the driver.
type jsonRemoved struct {
	Event string `json:"event"` // "removed"
	PID   uint32 `json:"pid,omitempty"`
}
