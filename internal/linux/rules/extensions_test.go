//go:build linux

package rules

import (
	"slices"
	"testing"
)

// TestLoadExtensions: once asked, the kernel has the extensions that rules are made with. For one that does not exist it answers
// with an error, so the test does depend on the answers.
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
