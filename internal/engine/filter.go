package engine

import "github.com/opendivert/divert/internal/prog"

// maxFilterData is the greatest length of a REFLECT event's data, in bytes, with the terminating zero (specification:
// api.md 1.1).
const maxFilterData = 12288

// FilterData returns a filter in the form of REFLECT, without the terminating zero: its object string or, for a filter of
// the extended dialect that has none, its text in normal form.
func FilterData(p *prog.Program) string {
	text, err := p.Object()
	if err != nil {
		if text, err = p.Format(); err != nil {
			text = p.String()
		}
	}
	return text[:min(len(text), maxFilterData-1)]
}
