// Package demo shows the main job on real traffic between two hosts of a lab network: packets are captured,
// dropped, rewritten and sent on, and a program that diverts is killed. It checks everything that it says.
package demo

import "io"

// Options say where and how the demonstration reports.
type Options struct {
	Out     io.Writer
	Verbose bool // more detail: every packet, every counter
	Bold    bool // headings in bold, for terminals
}
