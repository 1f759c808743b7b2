//go:build !linux

package firewall

import (
	"fmt"
	"net"

	"github.com/opendivert/divert"
)

// ListenPrompts fails: the user at the other end of a socket cannot be known here.
func ListenPrompts(string) (net.Listener, error) {
	return nil, fmt.Errorf("firewall: %w: prompts over a socket; give Config another Asker", divert.ErrNotSupported)
}

// DialPrompts fails as ListenPrompts does.
func DialPrompts(string) (*Prompt, error) {
	return nil, fmt.Errorf("firewall: %w: prompts over a socket", divert.ErrNotSupported)
}
