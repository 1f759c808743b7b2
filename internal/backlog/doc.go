// Package backlog is a queue of packets or events in user space, bounded as the specification bounds a handle's
// packet queue (api.md 12): what does not fit pushes out the oldest, and what is too old is not handed out. The
// engines keep in it what waits for a program; it knows no platform.
package backlog
