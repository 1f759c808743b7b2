package main

import (
	"fmt"
	"os"
	"os/exec"

	"github.com/opendivert/divert/firewall"
	"github.com/spf13/cobra"
)

// guardFile is the file that leads to a guard, beside the socket for prompts.
func (f *firewallFlags) guardFile() string { return f.socket + ".guard" }

// firewallGuard is the guard of a firewall, if the rules ask for one.
type firewallGuard struct {
	flags *firewallFlags
	guard *firewall.Guard
}

// guard starts a guard if the rules ask for one. It always ends the guard of a firewall that died: this firewall
// decides now.
func (f *firewallFlags) guard(fw *firewall.Firewall) (*firewallGuard, error) {
	if err := firewall.EndGuard(f.guardFile()); err != nil {
		return nil, fmt.Errorf("the guard of a firewall that died: %w", err)
	}
	g := &firewallGuard{flags: f}
	return g, g.renew(fw)
}

// renew starts or ends the guard, or passes it the current handles, as the rules require.
func (g *firewallGuard) renew(fw *firewall.Firewall) error {
	switch closed := fw.Rules().FailClosed(); {
	case closed && g.guard != nil:
		return g.guard.Renew()
	case !closed:
		g.end()
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "firewall", "guard", g.flags.guardFile())
	cmd.Stderr = os.Stderr
	g.guard, err = firewall.StartGuard(cmd)
	return err
}

// end ends the guard, if there is one.
func (g *firewallGuard) end() {
	if g.guard != nil {
		_ = g.guard.End() // its handles close with it, however it ends
		g.guard = nil
	}
}

// newFirewallGuard is the command that divert firewall run starts.
func newFirewallGuard(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "guard FILE",
		Short: "Keep a firewall closed if it dies; divert firewall run starts it",
		Long: `Hold the handles of a firewall open whose rules say on-death: closed. divert firewall run starts it; it is of no use
by itself. If the firewall dies, what it had decided stays so and nothing else passes, until the firewall runs again
or this command is ended.`,
		Example: "  kill $(cat /run/divert/firewall.sock.guard)      end the divert firewall guard of a firewall that died",
		Hidden:  true,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("guard is started by `divert firewall run`")
			}
			return firewall.RunGuard(os.NewFile(firewall.GuardFD, "firewall"), args[0], func() {
				fmt.Fprintf(a.errout, "divert: the firewall has died. What it has not decided stays closed until it runs again, or until process %d is ended: kill %[1]d\n",
					os.Getpid())
				_ = os.Stderr.Close() // release a reader that waits for the end of the firewall's messages
			})
		},
	}
}
