// Package eventsource runs the programs of one handle of the layers SOCKET and FLOW: it loads them for a filter, attaches them in the
// order of the handles, exchanges them for those of another filter, and reads the records that they send.
package eventsource
