// Package process tells which process an id stands for: its name, executable, user and start. Packets, flows and socket
// events carry ids only. An id is used again after its process has ended, so a Cache never answers with the process that had
// it before, and still knows a process after its end if it was asked while the process ran.
//
// On Linux it reads /proc, so ids are those of the process namespace of the /proc that is mounted. On systems other than
// Linux and Windows there is nothing to read, and every lookup fails with errors.ErrUnsupported.
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

	// Name is the name that the process has given itself, on Linux the kernel's comm: at most 15 bytes, and any bytes but
	// zero. Elsewhere it is the last part of Executable. Do not decide by it: every process may choose its own.
	Name string

	// Executable is the path of the file that it runs, as the process sees it. A file that was deleted since, as upgrades
	// do, has the path that it had.
	Executable string

	// File names that file whatever its path, on Linux; the zero File elsewhere.
	File File

	Args  []string  // the command line, the program's name first; a process may write there what it likes
	User  string    // name of the user that it runs as, or the number if there is no name
	UID   uint32    // number of that user, on Linux: the effective one
	Start time.Time // when it began; on Linux exact to 10 ms

	started uint64 // the start in the system's units: with the id it names the process
}

// File names a file by device and inode (stat(2)).
type File struct{ Device, Inode uint64 }

// ErrEnded says that no process has the id. It is fs.ErrNotExist.
var ErrEnded = fmt.Errorf("no process has the id: %w", fs.ErrNotExist)

// Lookup returns the process that has the id now. The errors are ErrEnded, fs.ErrPermission where not even the name may be
// read, errors.ErrUnsupported, or the system's error.
func Lookup(id uint32) (Process, error) {
	p, err := lookup(id)
	if err != nil {
		return Process{}, fmt.Errorf("process %d: %w", id, err)
	}
	return p, nil
}

// Cache remembers processes. A process is read once and later only looked at whether it still has its id, which takes a
// tenth of the time. The zero Cache is empty and ready; its methods may be called from several goroutines.
type Cache struct {
	mu    sync.Mutex
	known map[uint32]*entry
	turn  uint64 // counts lookups
}

type entry struct {
	Process
	used uint64 // the turn of the last lookup
}

// maxKnown is how many processes a Cache remembers. When there are more, it forgets the least recently used half.
const maxKnown = 4096

// Lookup returns the process that has the id now or, if none has it any more, the last one that the Cache has seen with
// it. The errors are those of the function Lookup.
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

// LookupNamed is Lookup for a process of whose name something else has told, as (*packet.Address).ProcessName does: one that
// ended before the Cache could see it comes with its ID and that name, and nothing else. Without a name it is Lookup.
func (c *Cache) LookupNamed(id uint32, name string) (Process, error) {
	p, err := c.Lookup(id)
	if err != nil && name != "" {
		return Process{ID: id, Name: name}, nil
	}
	return p, err
}

// forget forgets the processes that were not asked for in as many of the last lookups as half the known processes.
func (c *Cache) forget() {
	before := c.turn - min(c.turn, maxKnown/2)
	for id, e := range c.known {
		if e.used <= before {
			delete(c.known, id)
		}
	}
}
