// Package demo demonstrates diverting on real traffic between two hosts of a lab network: packets are captured,
// dropped, rewritten and sent on, and a program that diverts is killed. It checks every claim that it prints.
package demo

import "io"

// Options choose the output of the demonstration, and its detail.
type Options struct {
	Out     io.Writer
	Verbose bool // more detail: every packet, every counter
	Bold    bool // headings in bold, for terminals
}
