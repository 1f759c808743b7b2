package firewall

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The socket lies where only root and this user can put it, and only these can connect.
func TestListenPrompts(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(dir, "socket")
	l, err := ListenPrompts(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path string
		mode os.FileMode
	}{{dir, 0o700}, {path, 0o600}} {
		if info, err := os.Stat(tt.path); err != nil || info.Mode().Perm() != tt.mode {
			t.Errorf("%s: %v, %v", tt.path, info.Mode(), err)
		}
	}
	if _, err := ListenPrompts(path); err == nil || !strings.Contains(err.Error(), "a firewall runs already") {
		t.Errorf("a second one: %v", err)
	}
	p, err := DialPrompts(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	for i := 0; err == nil && i < 1; i++ { // the one of the second listener was closed
		if cred, e := peerOf(c); e != nil || int(cred.Uid) != os.Geteuid() {
			t.Errorf("the peer is %+v, %v", cred, e)
		}
		c.Close()
	}
	if err != nil {
		t.Error(err)
	}
	p.Close()
	l.Close()
	if _, err := DialPrompts(path); err == nil || !strings.Contains(err.Error(), "no firewall listens") {
		t.Errorf("nobody there: %v", err)
	}
	// The socket of a dead firewall is replaced.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	if l, err := ListenPrompts(path); err != nil {
		t.Errorf("what a dead one left: %v", err)
	} else {
		l.Close()
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenPrompts(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenPrompts(filepath.Join(dir, "other")); err == nil || !strings.Contains(err.Error(), "others may make files") {
		t.Errorf("a folder for all: %v", err)
	}
	if os.Getuid() == 0 {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, 65534, 65534); err != nil {
			t.Skip(err)
		}
		if _, err := ListenPrompts(filepath.Join(dir, "other")); err == nil || !strings.Contains(err.Error(), "belongs to user 65534") {
			t.Errorf("another's folder: %v", err)
		}
	}
}

func TestReadListeners(t *testing.T) {
	const table = "  sl  local_address rem_address   st tx_queue\n" +
		"   0: 00000000:0016 00000000:0000 0A 00000000:00000000\n" +
		"   1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0\n" +
		"   2: 0100007F:0017 0100007F:9C40 01 00000000:00000000\n" +
		"   3: 00000000:0018 00000000:0000 0A 00000000:00000000\n" // the kernel's tables never have one here
	ports := map[uint16]bool{}
	readListeners(strings.NewReader(table), ports)
	if len(ports) != 2 || !ports[22] || !ports[8080] {
		t.Errorf("%v", ports)
	}
}
