package windows

import "errors"

// Report is what Diagnose has found.
type Report struct {
	System  string  `json:"system"`  // version of Windows
	Machine string  `json:"machine"` // its processor, as GOARCH names it
	Program string  `json:"program"` // processor that this program is built for
	Handles bool    `json:"handles"` // handles can be opened
	Engine  string  `json:"engine"`  // driver that runs; empty if none does
	Checks  []Check `json:"checks"`
}

// Check is a need of handles, and its state here.
type Check struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Found   string `json:"found"`
	Without string `json:"without,omitempty"` // the functions that do not work if it is not OK
	Remedy  string `json:"remedy,omitempty"`  // and what to do about it
}

// fail notes why a check fails. The remedy is for errors that bring none.
func (c *Check) fail(err error, without, remedy string) {
	c.OK, c.Found, c.Without, c.Remedy = false, err.Error(), without, remedy
	var e *Error
	if errors.As(err, &e) {
		c.Found = e.fact()
		if r := causes[e.Code].remedy; r != "" {
			c.Remedy = r
		}
	}
}

// conclude says whether handles can be opened: with the driver that runs, or else if nothing is in the way
// of installing it.
func (r *Report) conclude() {
	r.Handles = r.Engine != ""
	if r.Handles {
		return
	}
	for _, c := range r.Checks {
		if !c.OK {
			return
		}
	}
	r.Handles = true
}
