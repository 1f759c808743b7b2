package windows

import "errors"

// Report is the result of Diagnose.
type Report struct {
	System  string  `json:"system"`  // version of Windows
	Machine string  `json:"machine"` // its processor, as a GOARCH
	Program string  `json:"program"` // processor that this program is built for
	Handles bool    `json:"handles"` // handles can be opened
	Engine  string  `json:"engine"`  // driver that runs; empty if none does
	Checks  []Check `json:"checks"`
}

// Check is a requirement of handles, and its state here.
type Check struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Found   string `json:"found"`
	Without string `json:"without,omitempty"` // the functions that do not work unless it is OK
	Remedy  string `json:"remedy,omitempty"`  // and the remedy
}

// fail records an error of a check. The remedy is for errors without their own.
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

// conclude decides whether handles can be opened: with the running driver, or else if nothing prevents its installation.
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
