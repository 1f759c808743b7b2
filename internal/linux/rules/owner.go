//go:build linux

package rules

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
)

// Owner is the handle that a rule belongs to. It stands in each of its rules as a comment, so that
// `nft list ruleset` shows it too.
type Owner struct {
	ID       uint64 // random, names the handle
	PID      int    // in the pid namespace of the process itself
	Opened   int64  // time of opening, ns of the monotonic clock
	Key      cursor.Key
	Priority int16
	Layer    uint8
	Flags    uint64
	Filter   string // what REFLECT tells of the handle's filter; in rules of its own, see filterParts
}

const ownerFormat = "divert handle=%x pid=%d opened=%d key=%d priority=%d layer=%d flags=%d"

// comment returns the owner as the comment of a rule.
func (o Owner) comment() string {
	return fmt.Sprintf(ownerFormat, o.ID, o.PID, o.Opened, o.Key, o.Priority, o.Layer, o.Flags)
}

// userData returns the owner as userdata of a rule.
func (o Owner) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, o.comment())
}

// parseOwner reads the userdata of a rule. Rules that belong to no handle, and what no handle would
// write, have no owner.
func parseOwner(data []byte) (Owner, bool) {
	text, ok := comment(data)
	if !ok {
		return Owner{}, false
	}
	var o Owner
	_, err := fmt.Sscanf(text, ownerFormat, &o.ID, &o.PID, &o.Opened, &o.Key, &o.Priority, &o.Layer, &o.Flags)
	if err != nil || o.comment() != text || o.Key != cursor.NewKey(o.Priority, o.Key.Sub()) {
		return Owner{}, false
	}
	return o, true
}

// comment returns the comment in userdata: entries of type, length and value, where a text ends with a
// zero byte (libnftnl, udata.h). Other programs' rules hold what they like.
func comment(data []byte) (text string, ok bool) {
	value := entry(data, userdata.TypeComment)
	if value == nil {
		return "", false
	}
	value, _ = bytes.CutSuffix(value, []byte{0})
	return string(value), true
}

// token is an abstract unix socket: a name of the network namespace that one process can hold at a time
// and that ends with it.
type token struct{ conn *net.UnixConn }

// tokenName is the socket that tells that a handle is alive.
func tokenName(id uint64) string { return fmt.Sprintf("@divert/handle/%x", id) }

// lockName is the socket that whoever changes the table holds meanwhile.
const lockName = "@divert/lock"

// hold takes the name in the namespace of the calling thread, or fails with unix.EADDRINUSE.
func hold(name string) (*token, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	return &token{conn}, nil
}

// release gives the name back.
func (t *token) release() { t.conn.Close() }

// lockTimeout is how long a change waits for another process's change, which takes milliseconds. Tests
// wait less.
var lockTimeout = 10 * time.Second

// ErrBusy means that another process has been changing the table for too long.
var ErrBusy = errors.New("another process has held the lock of the divert table (abstract socket " + lockName + ") for 10 seconds; see who with `ss -xlp`")

// lock waits for the right to change the table.
func lock() (*token, error) {
	for start, pause := time.Now(), 100*time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		t, err := hold(lockName)
		if !errors.Is(err, unix.EADDRINUSE) {
			return t, err
		}
		if time.Since(start) > lockTimeout {
			return nil, ErrBusy
		}
		time.Sleep(pause)
	}
}

// alive reports whether somebody holds the handle's token. When in doubt a handle counts as alive.
func (o Owner) alive() bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	return !errors.Is(unix.Connect(fd, &unix.SockaddrUnix{Name: tokenName(o.ID)}), unix.ECONNREFUSED)
}
