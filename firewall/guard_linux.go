package firewall

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A firewall that fails closed has a guard: a process that only holds copies of the descriptors behind its handles:
// packet queues, eBPF maps and programs. The kernel ends a handle when its last descriptor is closed. While the guard
// lives, a killed firewall looks to the kernel like one that does not answer: decided connections stay decided, and
// undecided packets wait in the queue, and are dropped when that is full. So nothing undecided ever passes.

// Guard holds a firewall's handles open should its process die. The methods may not be called by several goroutines at once.
type Guard struct {
	cmd  *exec.Cmd
	conn *net.UnixConn
}

// GuardFD is the descriptor of the guard's connection in its process: give it to RunGuard.
const GuardFD = 3

// The one-byte words between a firewall and its guard. Descriptors come with hold.
const (
	wordHold  = 'h' // some of the descriptors
	wordHeld  = 'H' // those were all: release the earlier ones
	wordQuit  = 'q' // the firewall ends in order
	wordReady = 'r' // the guard's answer
)

// StartGuard starts a guard for the handles that this process has open. cmd is a command whose process calls RunGuard.
func StartGuard(cmd *exec.Cmd) (*Guard, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("firewall: guard: %w", os.NewSyscallError("socketpair", err))
	}
	theirs := os.NewFile(uintptr(fds[1]), "guard")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "guard")
	defer ours.Close()
	conn, err := unixConn(ours)
	if err != nil {
		return nil, fmt.Errorf("firewall: guard: %w", err)
	}
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // ^C must not reach it
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("firewall: guard: %w", err), conn.Close())
	}
	g := &Guard{cmd: cmd, conn: conn}
	if err := g.Renew(); err != nil {
		return nil, errors.Join(err, g.End())
	}
	return g, nil
}

// unixConn makes a connection of a socket; the caller may then close the file.
func unixConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("no Unix socket"), c.Close())
	}
	return u, nil
}

// settleTime is the age at which a descriptor is held: short-lived ones come and go within it.
const settleTime = 50 * time.Millisecond

// guardTime is the time that a guard has to answer.
const guardTime = 10 * time.Second

// Renew has the guard hold the handles that this process has open now, and release all earlier ones. Call it after an
// exchange of rules.
func (g *Guard) Renew() error {
	before, err := ownDescriptors()
	if err != nil {
		return fmt.Errorf("firewall: guard: %w", err)
	}
	time.Sleep(settleTime)
	now, err := ownDescriptors()
	if err != nil {
		return fmt.Errorf("firewall: guard: %w", err)
	}
	var fds []int
	for fd, what := range now {
		if before[fd] == what {
			fds = append(fds, fd)
		}
	}
	if err := g.send(fds); err != nil {
		return fmt.Errorf("firewall: the guard does not answer: %w", err)
	}
	return nil
}

// maxPassed is the most descriptors in one message (SCM_MAX_FD, include/net/scm.h).
const maxPassed = 253

// send passes descriptors to the guard and waits until it has them.
func (g *Guard) send(fds []int) error {
	if err := g.conn.SetDeadline(time.Now().Add(guardTime)); err != nil {
		return err
	}
	for len(fds) > 0 {
		n := min(len(fds), maxPassed)
		if _, _, err := g.conn.WriteMsgUnix([]byte{wordHold}, unix.UnixRights(fds[:n]...), nil); err != nil {
			return err
		}
		fds = fds[n:]
	}
	if _, err := g.conn.Write([]byte{wordHeld}); err != nil {
		return err
	}
	var word [1]byte
	if _, err := g.conn.Read(word[:]); err != nil {
		return err
	}
	if word[0] != wordReady {
		return fmt.Errorf("it says %q", word[0])
	}
	return nil
}

// ownDescriptors returns the descriptors of this process that may belong to handles, with their kinds.
func ownDescriptors() (map[int]string, error) {
	const dir = "/proc/self/fd"
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	all := map[int]string{}
	for _, entry := range list {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		what, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue // closed by now
		}
		switch {
		case what == "anon_inode:bpf-map", what == "anon_inode:bpf-prog":
			all[fd] = what
		case strings.HasPrefix(what, "socket:"):
			if isQueue(fd) {
				all[fd] = what
			}
		}
	}
	return all, nil
}

// isQueue reports whether a descriptor is a socket of netfilter, as packet queues are.
func isQueue(fd int) bool {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || domain != unix.AF_NETLINK {
		return false
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return err == nil && protocol == unix.NETLINK_NETFILTER
}

// End ends the guard: the handles end with this process again.
func (g *Guard) End() error {
	_ = g.conn.SetDeadline(time.Now().Add(guardTime))
	_, err := g.conn.Write([]byte{wordQuit})
	if err != nil {
		err = g.cmd.Process.Kill() // the guard is dead, or hangs
	}
	err = errors.Join(err, g.conn.Close())
	if waited := g.cmd.Wait(); waited != nil && err == nil {
		var exit *exec.ExitError
		if !errors.As(waited, &exit) {
			err = waited
		}
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("firewall: guard: %w", err)
	}
	return nil
}

// RunGuard is the main function of a guard's process: conn is the file of GuardFD. It returns nil when the firewall has
// ended in order, or when SIGTERM ends the guard. If the firewall dies, RunGuard calls orphaned and the guard stays until
// a signal or EndGuard ends it. EndGuard finds the guard by the file at path, which is the guard's alone while it holds
// the file's lock.
func RunGuard(conn *os.File, path string, orphaned func()) error {
	signal.Ignore(unix.SIGINT, unix.SIGHUP, unix.SIGPIPE)
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM)
	// Makes the kernel kill this process last when memory is short; it needs rights for that.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	c, err := unixConn(conn)
	if err != nil {
		return fmt.Errorf("a guard is started by divert firewall run, and not by hand: %w", err)
	}
	defer c.Close()
	go keepFile(path)
	quit := make(chan error, 1)
	go func() { quit <- hold(c) }()
	for {
		select {
		case err := <-quit:
			if err == nil {
				return nil
			}
			quit = nil // the descriptors stay open
			orphaned()
		case <-end:
			return nil
		}
	}
}

// held are the descriptors that this process holds and never uses.
var held []int

// hold holds the descriptors that it receives until the firewall ends in order; the firewall's death is an error.
func hold(c *net.UnixConn) error {
	var fresh []int
	word, control := make([]byte, 1), make([]byte, unix.CmsgSpace(4*maxPassed))
	for {
		n, m, flags, _, err := c.ReadMsgUnix(word, control)
		if err != nil {
			return err
		}
		if n == 0 {
			return io.EOF
		}
		switch word[0] {
		case wordHold:
			fds, err := passed(control[:m])
			if err == nil && flags&unix.MSG_CTRUNC != 0 {
				err = errors.New("descriptors were lost: the limit for open files is too low")
			}
			if err != nil {
				return err
			}
			fresh = append(fresh, fds...)
		case wordHeld:
			for _, fd := range held {
				_ = unix.Close(fd)
			}
			held, fresh = fresh, nil
			if _, err := c.Write([]byte{wordReady}); err != nil {
				return err
			}
		case wordQuit:
			return nil
		}
	}
}

// passed returns the descriptors that came with a message.
func passed(control []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		some, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

// keepFile writes the guard's process id to a file, and keeps the file's lock until the process ends. It waits while
// another guard has the lock.
func keepFile(path string) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return // divert kill still finds the guard
	}
	for unix.Flock(int(f.Fd()), unix.LOCK_EX) == unix.EINTR {
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	defer f.Close()
	select {} // the lock lasts as long as the process
}

// EndGuard ends the guard of a dead firewall, if one has the file at path. All traffic that the guard held back then
// passes, unless other handles decide on it. Open those before. Only root, or this user, may be able to make files in the
// file's folder.
func EndGuard(path string) error {
	if err := checkFolder(filepath.Dir(path)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	deadline := time.Now().Add(guardTime)
	for told := false; ; {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err {
		case nil:
			return nil // there is no guard, or it has ended
		case unix.EWOULDBLOCK, unix.EINTR:
		default:
			return os.NewSyscallError("flock", err)
		}
		if !told {
			if told, err = tellGuard(f); err != nil {
				return err
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("firewall: the guard that has %s does not end", path)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// tellGuard ends the guard that has locked the file, by the id in it, which the guard may not have written yet.
func tellGuard(f *os.File) (bool, error) {
	var b [16]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	pid, err := strconv.Atoi(string(b[:n]))
	if err != nil || pid <= 1 {
		return false, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return false, nil
	}
	if err != nil {
		return false, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return true, nil // the guard has ended, and another process may have its id
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && err != unix.ESRCH {
		return false, os.NewSyscallError("pidfd_send_signal", err)
	}
	return true, nil
}
