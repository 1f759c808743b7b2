package process

import (
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestMain is also the child that tests look up.
func TestMain(m *testing.M) {
	if os.Getenv("DIVERT_TEST_CHILD") != "" {
		_, _ = os.Stdout.Write([]byte{1})
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	os.Exit(m.Run())
}

// child starts this program again and returns it with a function that ends it. It waits until the child runs: Start may
// return before the kernel shows the arguments.
func child(t testing.TB) (*exec.Cmd, func()) {
	t.Helper()
	if runtime.GOOS != "linux" && runtime.GOOS != "windows" {
		t.Skip("nothing is known of processes on " + runtime.GOOS)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "an argument")
	cmd.Env = append(os.Environ(), "DIVERT_TEST_CHILD=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() { in.Close(); _ = cmd.Wait() })
	t.Cleanup(end)
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd, end
}

// TestLookupNamed: a process's former name helps when nothing else about it is known.
func TestLookupNamed(t *testing.T) {
	cmd, end := child(t)
	id := uint32(cmd.Process.Pid)
	var before, after Cache
	alive, err := before.LookupNamed(id, "another")
	if err != nil || alive.Executable == "" || alive.Name == "another" {
		t.Errorf("while it runs: %+v, %v", alive, err)
	}
	end()
	if p, err := before.LookupNamed(id, "another"); err != nil || p.Executable != alive.Executable || p.Name != alive.Name {
		t.Errorf("a process that was seen: %+v, %v", p, err)
	}
	if p, err := after.LookupNamed(id, "curl"); err != nil || p.ID != id || p.Name != "curl" || p.Executable != "" {
		t.Errorf("one that was not: %+v, %v", p, err)
	}
	if p, err := after.LookupNamed(id, ""); !errors.Is(err, ErrEnded) {
		t.Errorf("one without a name: %+v, %v", p, err)
	}
}

func TestLookup(t *testing.T) {
	before := time.Now()
	cmd, end := child(t)
	id := uint32(cmd.Process.Pid)
	p, err := Lookup(id)
	if err != nil {
		t.Fatal(err)
	}
	self, _ := os.Executable()
	if resolved, err := filepath.EvalSymlinks(self); err == nil {
		self = resolved
	}
	if p.ID != id || p.Parent != uint32(os.Getpid()) || p.Executable != self {
		t.Errorf("%+v, want id %d of %d, which runs %s", p, id, os.Getpid(), self)
	}
	if age := p.Start.Sub(before); age < -time.Minute || age > time.Minute {
		t.Errorf("started at %v, want about %v", p.Start, before)
	}
	if runtime.GOOS == "linux" {
		if name := filepath.Base(self); p.Name != name[:min(len(name), 15)] || len(p.Args) != 2 || p.Args[1] != "an argument" || p.UID != uint32(os.Geteuid()) {
			t.Errorf("%+v", p)
		}
		if p.File == (File{}) {
			t.Error("the file is not known")
		}
	}
	if u, err := user.Current(); err == nil && p.User != u.Username {
		t.Errorf("runs as %q, want %q", p.User, u.Username)
	}
	end()
	if p, err := Lookup(id); !errors.Is(err, ErrEnded) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after its end: %+v, %v", p, err)
	}
}

func TestCacheKnowsAProcessAfterItsEnd(t *testing.T) {
	cmd, end := child(t)
	id := uint32(cmd.Process.Pid)
	var c, late Cache
	first, err := c.Lookup(id)
	if err != nil {
		t.Fatal(err)
	}
	end()
	if again, err := c.Lookup(id); err != nil || again.Executable != first.Executable || again.Start != first.Start {
		t.Errorf("%+v, %v", again, err)
	}
	if p, err := late.Lookup(id); !errors.Is(err, ErrEnded) {
		t.Errorf("never seen: %+v, %v", p, err)
	}
}

func TestCacheIsSafeAgainstReuse(t *testing.T) {
	cmd, _ := child(t)
	id := uint32(cmd.Process.Pid)
	c := Cache{known: map[uint32]*entry{id: {Process: Process{ID: id, Name: "before", started: 1}}}}
	if p, err := c.Lookup(id); err != nil || p.Name == "before" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestCacheForgets(t *testing.T) {
	cmd, _ := child(t)
	var c Cache
	c.known = map[uint32]*entry{}
	for i := range uint32(maxKnown) {
		c.turn++
		c.known[1<<31+i] = &entry{used: c.turn}
	}
	if _, err := c.Lookup(uint32(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	if n := len(c.known); n > maxKnown/2+1 || n < maxKnown/4 {
		t.Errorf("%d are left", n)
	}
	if c.known[uint32(cmd.Process.Pid)] == nil || c.known[1<<31+maxKnown-1] == nil {
		t.Error("the last ones are forgotten")
	}
}

func BenchmarkLookup(b *testing.B) {
	cmd, _ := child(b)
	var c Cache
	for _, row := range []struct {
		name string
		f    func(uint32) (Process, error)
	}{{"read", Lookup}, {"cached", c.Lookup}} {
		b.Run(row.name, func(b *testing.B) {
			for b.Loop() {
				if _, err := row.f(uint32(cmd.Process.Pid)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
