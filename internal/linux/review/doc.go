// Package review takes a second look at packets that filter programs have chosen: it finds the time and the process that a
// program used in its decision, and decides itself where a program could not, or where only the beginning of a packet is there.
package review
