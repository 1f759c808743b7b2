// Package prog is what a filter compiles to: a list of tests of fields, and what may be done with it. The compiler of the
// language (package filter) makes programs. The interpreter here runs them; the platforms' engines translate them for the
// kernel or the driver. The table of fields, which all of them go by, stands here too.
package prog
