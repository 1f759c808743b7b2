// Package backlog is a queue of packets or events in user space, bounded as the specification bounds a handle's packet
// queue (api.md 12): an item that does not fit pushes out the oldest, and items that are too old are not handed out. The
// engines keep in it the packets and events that wait for a program; it does not depend on a platform.
package backlog
