//go:build linux

package eventsource

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// compiled compiles a filter of the layer SOCKET.
func compiled(t testing.TB, text string) *prog.Program {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerSocket, filter.Strict)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// attached checks that at each hook the program of the filter in force is attached, and no other.
func (s *Source) attached(t testing.TB) {
	t.Helper()
	for i, p := range s.loaded {
		name := s.programs[i].Name
		l, attached := s.links[name]
		if attached != (p != nil) {
			t.Errorf("%s: attached %t, loaded %t", name, attached, p != nil)
		}
		if !attached || p == nil {
			continue
		}
		is, err := l.Info()
		if err != nil {
			t.Fatal(err)
		}
		wants, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := wants.ID(); is.Program != want {
			t.Errorf("%s: program %d is attached, want %d", name, is.Program, want)
		}
	}
}

// A filter that the kernel refuses at any hook leaves the one before in force at all of them.
func TestSetFilterThatFailsHalfWayKeepsTheOld(t *testing.T) {
	host, err := lab.NewT(t).AddHost("A")
	if err != nil {
		t.Fatal(err)
	}
	root, err := cgroup.Open()
	if err != nil {
		t.Skip(err)
	}
	defer root.Dir.Close()
	var s *Source
	err = host.Do(func() error {
		s, err = Open(Config{Filter: compiled(t, "event == BIND"), Flags: 1, Key: cursor.NewKey(0, 0), Cgroup: root.Dir, Events: 64})
		return err
	})
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EPERM) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.attached(t)
	refused := errors.New("refused")
	defer func(u func(link.Link, *ebpf.Program) error) { updateLink, attachNew = u, cgroup.Attach }(updateLink)
	for _, text := range []string{"event == CONNECT or event == CLOSE", "true", "event == BIND"} {
		for step := 1; ; step++ {
			n := 0
			fails := func() bool { n++; return n == step }
			updateLink = func(l link.Link, p *ebpf.Program) error {
				if fails() {
					return refused
				}
				return l.Update(p)
			}
			attachNew = func(c *os.File, k ebpf.AttachType, p *ebpf.Program, key cursor.Key) (link.Link, bool, error) {
				if fails() {
					return nil, false, refused
				}
				return cgroup.Attach(c, k, p, key)
			}
			before := append([]*ebpf.Program(nil), s.loaded...)
			err := s.SetFilter(compiled(t, text))
			s.attached(t)
			if err == nil {
				if step == 1 || n >= step {
					t.Errorf("%s: no step failed", text)
				}
				break // this filter takes fewer steps
			}
			if !errors.Is(err, refused) {
				t.Fatalf("%s, step %d: %v", text, step, err)
			}
			for i := range before {
				if s.loaded[i] != before[i] {
					t.Fatalf("%s, step %d: the programs are not those of before", text, step)
				}
			}
		}
	}
}
