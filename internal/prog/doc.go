// Package prog is the compiled form of a filter: a list of tests of fields, with all operations on it. The compiler of
// the language (package filter) makes programs. The interpreter here runs them; the platforms' engines translate them for
// the kernel or the driver. The table of fields for all of these is here, too.
// kernel or the driver. The table of fields that all of them use is here, too.
package prog
