//go:build !windows

package main

import (
	"github.com/opendivert/divert/internal/linux/probe"
)

const doctorHelp = `Try each feature of the kernel that divert uses, and say who will decide which packets
match (eBPF in the kernel, or the interpreter), what is missing, since which kernel version it is there,
and what to do about it.

Everything is tried in a network namespace made for it; the network of this machine is not touched. It is read, for
what keeps packets from handles or leads them there twice: bridges with br_netfilter, flowtables, VRFs, REDIRECT and TPROXY.
As an ordinary user it tries in a user namespace what would be possible there.`

const doctorExample = "  divert doctor\n  divert doctor --json | jq '.features[] | select(.ok | not)'"

// diagnose is the command doctor.
func (a *app) diagnose(asJSON bool, driver string) error {
	if err := checkDriver(driver); err != nil {
		return err
	}
	r, err := probe.Run()
	if err != nil {
		return err
	}
	if asJSON {
		return a.writeJSON(r)
	}
	return a.diagnosis(r)
}
