//go:build linux

package rules

import (
	"slices"
	"testing"
)

// TestLoadExtensions: the kernel has the extensions that rules are made with, once it was asked; for one that is not there
// the answer is an error, so that it is the answers that the test goes by.
func TestLoadExtensions(t *testing.T) {
	h, _ := newHost(t)
	do(t, h, LoadExtensions)
	before := slices.Clone(extensions)
	defer func() { extensions = before }()
	extensions = append(extensions, extension{"nosuchextension", compatMatch, 1})
	if err := h.Do(LoadExtensions); err == nil {
		t.Error("an extension that is not there is there")
	}
}
