// Package probe tries which of the features that the engines need a system has: each feature is a value with
// a name, the first kernel version that has it and a test. All tests run in a network namespace made for
// them, never in that of the process.
package probe

import (
	"errors"
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/kernel"
)

// Version is a version of Linux. The zero Version stands for no requirement.
type Version = kernel.Version

// Error says why a feature is not there.
type Error struct {
	Feature string
	Since   Version // set if the kernel is older than that
	Err     error   // what the test met
}

// Error names the version that is needed, or else what the test met.
func (e *Error) Error() string {
	if e.Since != (Version{}) {
		return fmt.Sprintf("%s not supported (requires >= %v)", e.Feature, e.Since)
	}
	return fmt.Sprintf("%s not available: %v", e.Feature, e.Err)
}

// Unwrap returns what the test met, and ErrNotSupported if the kernel is too old.
func (e *Error) Unwrap() []error {
	if e.Since != (Version{}) {
		return []error{engine.ErrNotSupported, e.Err}
	}
	return []error{e.Err}
}

// ErrNotTried is the error of a feature whose test could not be run.
var ErrNotTried = errors.New("not tried")

// Result says whether the system has a feature.
type Result struct {
	Name    string  `json:"name"`
	Since   Version `json:"since"`             // first kernel version; "" where it is a matter of rights
	For     string  `json:"for"`               // what it is used for
	OK      bool    `json:"ok"`                // the test has succeeded
	Tried   bool    `json:"tried"`             // the test could be run
	Error   string  `json:"error,omitempty"`   // why it is not there
	Without string  `json:"without,omitempty"` // functions that need it, if it is missing
	Remedy  string  `json:"remedy,omitempty"`  // what to do about it, if it is not there
}

// Warning is something in this network because of which handles see packets twice, not at all, or not as they came.
type Warning struct {
	What   string `json:"what"`
	Effect string `json:"effect"` // on handles
	Remedy string `json:"remedy"` // what to do about it
}

// Report is the result of all probes of a system.
type Report struct {
	Kernel  string `json:"kernel"`
	Machine string `json:"machine"`
	User    int    `json:"uid"`

	// Probed says where the tests ran: "namespace" (of root), "rootless" (in a user namespace), or
	// "nowhere", with the reason in ProbedError.
	Probed      string `json:"probed"`
	ProbedError string `json:"probed_error,omitempty"`

	Here      bool     `json:"here"`                 // this user can open handles in this network
	HereTried bool     `json:"here_tried"`           // whether that was tried: if not, Here is false and HereError says why
	HereError string   `json:"here_error,omitempty"` // why not
	Engine    string   `json:"engine,omitempty"`     // how the handles are served, here or else in a rootless network
	Features  []Result `json:"features"`

	Warnings []Warning `json:"warnings,omitempty"` // of the network of the process itself
}
