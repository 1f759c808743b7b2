//go:build linux

package rules

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/netns"
)

// The kernel tells which process a handle belongs to: the handle's rules name the port of its token's socket,
// the kernel names the inode of the socket that has this port, and the process is one that has this inode open. The
// process id in the rules is where to look first, no more: it may be of another pid namespace, or forged.

// netlinkSockets holds a line for each netlink socket of the calling thread's namespace.
const netlinkSockets = "/proc/thread-self/net/netlink"

// Columns of a line (net/netlink/af_netlink.c, netlink_native_seq_show).
const (
	columnProtocol = 1
	columnPort     = 2
	columnInode    = 9
)

// inodes returns the inodes of the namespace's nfnetlink sockets by their ports.
func inodes() (map[uint32]uint64, error) {
	f, err := os.Open(netlinkSockets)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all := map[uint32]uint64{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		if port, inode, ok := parseSocket(s.Text()); ok {
			all[port] = inode
		}
	}
	return all, s.Err()
}

// parseSocket reads a line of an nfnetlink socket.
func parseSocket(line string) (port uint32, inode uint64, ok bool) {
	f := strings.Fields(line)
	if len(f) <= columnInode || f[columnProtocol] != strconv.Itoa(unix.NETLINK_NETFILTER) {
		return 0, 0, false
	}
	p, err := strconv.ParseUint(f[columnPort], 10, 32)
	if err != nil {
		return 0, 0, false
	}
	inode, err = strconv.ParseUint(f[columnInode], 10, 64)
	return uint32(p), inode, err == nil && inode != 0
}

// eachSocket gives the inodes of a process's open sockets to f, which says whether to go on, with the path of the
// descriptor. The process is named as in /proc.
func eachSocket(process string, f func(inode uint64, path string) bool) error {
	dir := "/proc/" + process + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := dir + "/" + e.Name()
		link, err := os.Readlink(path)
		if err != nil {
			continue // closed meanwhile
		}
		number, isSocket := strings.CutPrefix(strings.TrimSuffix(link, "]"), "socket:[")
		if !isSocket {
			continue
		}
		if inode, err := strconv.ParseUint(number, 10, 64); err == nil && !f(inode, path) {
			return nil
		}
	}
	return nil
}

// holds reports whether a process has one of the sockets open.
func holds(process string, sockets map[uint64]bool) (found bool, err error) {
	err = eachSocket(process, func(inode uint64, path string) bool {
		found = sockets[inode] && !planted(process, path)
		return !found
	})
	return found, err
}

// planted reports whether a process may have a socket against its will: any process can pass descriptors to one that
// takes them, such as a message bus. The user who made a socket owns its inode (net/socket.c, sock_alloc). If that is
// neither root nor the user of the process, the process did not open the handle.
func planted(process, path string) bool {
	var socket unix.Stat_t
	if unix.Stat(path, &socket) != nil {
		return true // closed meanwhile
	}
	if socket.Uid == 0 {
		return false // a process that opens a handle as root may go on as another user
	}
	status, err := os.ReadFile("/proc/" + process + "/status")
	return err != nil || !slices.Contains(users(string(status)), strconv.FormatUint(uint64(socket.Uid), 10))
}

// users returns the real, effective, saved and file system user of a process from its status in /proc.
func users(status string) []string {
	for line := range strings.Lines(status) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			return strings.Fields(ids)
		}
	}
	return nil
}

// ownProc reports whether /proc numbers processes as the calling process's pid namespace does.
func ownProc() bool {
	self, err := os.Readlink("/proc/self")
	return err == nil && self == strconv.Itoa(os.Getpid())
}

// identify fills in the processes of handles. It must run on a thread of the namespace.
func identify(owners []*Owner) {
	wanted := map[uint64]*Owner{}
	var ports map[uint32]uint64
	numbered := ownProc()
	for _, o := range owners {
		o.Process = 0
		if own.has(ownHandle{o.ID, o.Port}) {
			o.Process = os.Getpid()
			continue
		}
		if ports == nil && numbered {
			ports, _ = inodes()
		}
		inode, ok := ports[o.Port]
		if !ok {
			continue
		}
		if found, _ := holds(strconv.Itoa(o.PID), map[uint64]bool{inode: true}); found {
			o.Process = o.PID
			continue
		}
		wanted[inode] = o
	}
	if len(wanted) > 0 {
		search(wanted)
	}
}

// search looks through all processes for those of handles, given by the inodes of their sockets.
func search(wanted map[uint64]*Owner) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		_ = eachSocket(e.Name(), func(inode uint64, path string) bool {
			if o := wanted[inode]; o != nil && !planted(e.Name(), path) {
				o.Process = pid
				delete(wanted, inode)
			}
			return len(wanted) > 0
		})
		if len(wanted) == 0 {
			return
		}
	}
}

// ErrNotCertain means that the kernel does not confirm that a process has a handle.
var ErrNotCertain = errors.New("not certain to have a handle of this network")

// Kill ends a process that has a handle of the namespace open, and no other: it kills exactly the process that it checked. One
// that is gone already is no error.
func Kill(ns *netns.Namespace, pid int) error {
	// From here on the descriptor means this process, even if another one gets its number.
	fd, err := unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return nil
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: to end exactly the process that was checked takes Linux 5.3", ErrNotCertain)
	case err != nil:
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	return ns.Do(func() error {
		sockets, err := tokenSockets()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotCertain, err)
		}
		name, err := nameInProc(fd)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotCertain, err)
		}
		found, err := holds(name, sockets)
		switch {
		case err != nil:
			return fmt.Errorf("%w: its descriptors: %w (the processes of others need CAP_SYS_PTRACE)", ErrNotCertain, err)
		case !found:
			return fmt.Errorf("%w: it holds the token of none", ErrNotCertain)
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError("pidfd_send_signal", err)
		}
		return nil
	})
}

// tokenSockets returns the inodes of the sockets that are tokens of handles, in the namespace of the calling thread.
func tokenSockets() (map[uint64]bool, error) {
	t, err := snapshot()
	if err != nil {
		return nil, err
	}
	l := census()
	defer l.close()
	if l.bound == nil {
		return nil, errors.New("who has bound which packet queue is not to be read here (needs root, or CAP_DAC_READ_SEARCH)")
	}
	ports, err := inodes()
	if err != nil {
		return nil, err
	}
	sockets := map[uint64]bool{}
	for _, o := range t.owners() {
		if inode, ok := ports[o.Port]; ok && l.certain(o) {
			sockets[inode] = true
		}
	}
	return sockets, nil
}

// nameInProc returns the number by which /proc knows the process of a pidfd, whatever pid namespace it was mounted in.
func nameInProc(pidfd int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/thread-self/fdinfo/%d", pidfd))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		number, ok := strings.CutPrefix(line, "Pid:")
		if !ok {
			continue
		}
		if number = strings.TrimSpace(number); number != "0" && number != "-1" {
			return number, nil
		}
	}
	return "", errors.New("it is not in /proc")
}
