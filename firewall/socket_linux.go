package firewall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenPrompts listens on a Unix socket at a path, for prompts of root and of the user that this process runs as; it
// disconnects all others. It makes a missing folder for the socket, and refuses one in which other users than that and
// root may make files. It replaces the socket of a dead firewall; that of a living one is an error.
func ListenPrompts(path string) (net.Listener, error) {
	if err := checkFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if c, err := net.Dial("unix", path); err == nil {
		defer c.Close()
		who := ""
		if cred, err := peerOf(c); err == nil {
			who = fmt.Sprintf(" (process %d)", cred.Pid)
		}
		return nil, fmt.Errorf("a firewall runs already that has the socket %s%s: end it, or give this one another with --socket", path, who)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("%s is there already and no socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return rootListener{l}, nil
}

// checkFolder makes the folder of a socket, or checks that no other user can make files in it.
func checkFolder(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() {
		return fmt.Errorf("%s is not a folder", dir)
	}
	if s.Uid != 0 && int(s.Uid) != os.Geteuid() {
		return fmt.Errorf("the folder %s belongs to user %d; the socket must be in one of root, that others cannot change", dir, s.Uid)
	}
	if info.Mode()&0o022 != 0 {
		return fmt.Errorf("others may make files in the folder %s; the socket must be in one where they cannot (chmod go-w)", dir)
	}
	return nil
}

// rootListener accepts connections of root and of this user only.
type rootListener struct{ net.Listener }

// Accept waits for a connection of one of these users.
func (l rootListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if cred, err := peerOf(c); err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid()) {
			return c, nil
		}
		_ = c.Close()
	}
}

// peerOf returns the process and user at the other end of a Unix socket (SO_PEERCRED, unix(7)).
func peerOf(c net.Conn) (cred *unix.Ucred, err error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("no Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	failed := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(failed, err)
}

// DialPrompts connects to the firewall with the socket at a path. It fails if the other end is neither root's nor this
// user's.
func DialPrompts(path string) (*Prompt, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("no firewall listens at %s: start one with divert firewall run, whose rules ask: %w", path, err)
		}
		return nil, err
	}
	cred, err := peerOf(c)
	if err == nil && cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		err = fmt.Errorf("the socket %s is of user %d, and not root's", path, cred.Uid)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return NewPrompt(c), nil
}
