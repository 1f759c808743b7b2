// Package shell runs a command inside a lab network: a host, a router, and a peer with a web server and
// echo servers.
package shell

import "io"

// Options select the command and its place.
type Options struct {
	Divert  string    // the program that the command finds as "divert"; empty: the one in PATH
	Command []string  // empty: the user's shell
	At      string    // host, router or peer; empty: host
	In      io.Reader // the command's standard input
	Out     io.Writer // its standard output
	Err     io.Writer // its standard error, and messages about the network

	path string // the directory that contains Divert under that name
}

// Places are the values of Options.At.
var Places = []string{"host", "router", "peer"}
