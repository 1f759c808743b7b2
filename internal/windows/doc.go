// Package windows is the engine of Windows: a client of the signed WinDivert 2.2 driver in pure Go. It installs the
// driver where needed, uploads filters, and moves packets with overlapped I/O (specification: windows-driver.md). It
// includes no driver of its own.
//
// Filters of the extended dialect that the driver cannot express are decided in two steps: the driver gets a wider filter
// that misses nothing, and the interpreter decides about the packets it delivers; see plan.
//
// Only the files that call Windows need Windows. The protocol and the logic of handles build, and are tested, on any
// system.
package windows
