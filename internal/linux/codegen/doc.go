// Package codegen turns compiled filters into eBPF programs for the packet hooks of Linux, without a
// compiler at build or run time. A program is first specialised for its hook: no code is generated for tests that can
// never match there. The answers are those of the interpreter of package filter with the
// parser of the driver (specification: packets.md 1.4).
package codegen
