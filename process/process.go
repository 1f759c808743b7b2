// Package process finds the process behind an id: its name, executable, user and start. Packets, flows and socket events
// carry ids only. The system reuses an id after its process has ended; a Cache never confuses the two processes, and
// still knows a process after its end if it was asked while the process ran.
//
// On Linux the package reads /proc, so ids are those of the process namespace of the mounted /proc. On systems other than
// Linux and Windows every lookup fails with errors.ErrUnsupported.
package process

import (
	"fmt"
	"io/fs"
	"sync"
	"time"
)

// Process describes a process. Fields that this user may not read are empty: on Linux without CAP_SYS_PTRACE, the
// executables of other users' processes.
type Process struct {
	ID     uint32
	Parent uint32 // the process that started it, 0 if there is none

	// Name is the name that the process has given itself: on Linux the kernel's comm, at most 15 bytes of any value but
	// zero. Elsewhere it is the last part of Executable. Base no decision on it: every process may choose its own.
	Name string

	// Executable is the path of the file that it runs, as the process sees it. A file that was deleted since, for
	// instance by an upgrade, keeps its old path here.
	Executable string

	// File identifies that file whatever its path, on Linux; elsewhere it is the zero File.
	File File

	Args  []string  // the command line, the program's name first; a process may rewrite it at will
	User  string    // name of the user that it runs as, or the number if there is no name
	UID   uint32    // number of that user, on Linux: the effective one
	Start time.Time // time at which it began; on Linux exact to 10 ms

	started uint64 // the start in the system's units: with the id it identifies the process
}

// File identifies a file by device and inode (stat(2)).
type File struct{ Device, Inode uint64 }

// ErrEnded means that no process has the id. It is fs.ErrNotExist.
var ErrEnded = fmt.Errorf("no process has the id: %w", fs.ErrNotExist)

// Lookup returns the process that has the id now. The errors are ErrEnded, fs.ErrPermission where even the name may not
// be read, errors.ErrUnsupported, or the system's error.
func Lookup(id uint32) (Process, error) {
	p, err := lookup(id)
	if err != nil {
		return Process{}, fmt.Errorf("process %d: %w", id, err)
	}
	return p, nil
}

// Cache remembers processes. It reads a process once; later look-ups only check that the process still has its id, which
// takes a tenth of the time. The zero Cache is empty and ready; its methods may be called from several goroutines.
type Cache struct {
	mu    sync.Mutex
	known map[uint32]*entry
	turn  uint64 // counts lookups
}

type entry struct {
	Process
	used uint64 // the turn of the last lookup
}

// maxKnown is the most processes that a Cache remembers. Beyond, it forgets the least recently used half.
const maxKnown = 4096

// Lookup returns the process that has the id now or, if it has ended, the last one that the Cache has seen with it. The
// errors are those of the function Lookup.
func (c *Cache) Lookup(id uint32) (Process, error) {
	started, err := startOf(id)
	c.mu.Lock()
	e := c.known[id]
	if e != nil && (err != nil || started == e.started) {
		c.turn++
		e.used = c.turn
		p := e.Process
		c.mu.Unlock()
		return p, nil
	}
	c.mu.Unlock()
	if err != nil {
		return Process{}, fmt.Errorf("process %d: %w", id, err)
	}
	p, err := Lookup(id)
	if err != nil {
		return Process{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[uint32]*entry{}
	}
	if len(c.known) >= maxKnown {
		c.forget()
	}
	c.turn++
	c.known[id] = &entry{Process: p, used: c.turn}
	return p, nil
}

// LookupNamed is Lookup for a process whose name is known from another source, such as (*packet.Address).ProcessName: one
// that ended before the Cache could see it comes with its ID and that name only. Without a name it is Lookup.
func (c *Cache) LookupNamed(id uint32, name string) (Process, error) {
	p, err := c.Lookup(id)
	if err != nil && name != "" {
		return Process{ID: id, Name: name}, nil
	}
	return p, err
}

// forget forgets processes that the last lookups did not use, as many lookups as half the known processes.
func (c *Cache) forget() {
	before := c.turn - min(c.turn, maxKnown/2)
	for id, e := range c.known {
		if e.used <= before {
			delete(c.known, id)
		}
	}
}
