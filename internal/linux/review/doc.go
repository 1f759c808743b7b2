// Package review looks at packets again that filter programs have chosen: it finds the time and the process with which a
// program has decided, decides where a program could not, and where only the beginning of a packet is there.
package review
