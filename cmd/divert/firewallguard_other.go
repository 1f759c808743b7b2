//go:build !linux

package main

import (
	"github.com/opendivert/divert/firewall"
	"github.com/spf13/cobra"
)

// firewallGuard is the guard of a firewall, which only Linux has.
type firewallGuard struct{}

// guard refuses rules that ask for a guard.
func (f *firewallFlags) guard(fw *firewall.Firewall) (*firewallGuard, error) {
	g := &firewallGuard{}
	return g, g.renew(fw)
}

func (*firewallGuard) renew(fw *firewall.Firewall) error {
	if fw.Rules().FailClosed() {
		return usagef("on-death: closed needs Linux: here everything passes when the firewall dies")
	}
	return nil
}

func (*firewallGuard) end() {}

// newFirewallGuard makes a command that reports that guards need Linux.
func newFirewallGuard(*app) *cobra.Command {
	return &cobra.Command{
		Use: "guard", Short: "Keep a firewall closed if it dies, on Linux",
		Example: "  divert firewall guard",
		Hidden:  true,
		RunE: func(*cobra.Command, []string) error {
			return usagef("guard is started by `divert firewall run`, on Linux")
		},
	}
}
