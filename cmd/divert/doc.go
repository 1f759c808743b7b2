// Divert is the command to package divert: it dumps, drops and passes on packets that match a filter,
// explains filters, and shows what the system it runs on can do. Data goes to standard output,
// everything else to standard error; the exit status is 0 if it ended as asked, 1 if it failed, and 2 if
// the command line or the filter is wrong.
package main
