// Divert is the command of package divert: it dumps, drops and passes on packets that match a filter, explains filters,
// and shows which features the system supports. Data goes to standard output, everything else to standard error. The
// exit status is 0 on success, 1 on failure, and 2 if the command line or the filter is wrong.
package main
