//go:build linux

package queue

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// line is a queue's line as the kernel prints it (net/netfilter/nfnetlink_queue.c, seq_show).
func line(num uint16, total, full, user, id uint32) string {
	return fmt.Sprintf("%5d %6d %5d %1d %5d %5d %5d %8d %2d\n", num, 4711, total, 2, 65531, full, user, id, 1)
}

func TestCountersAddUpPastTheirWrapAround(t *testing.T) {
	other := line(1, 9, 9, 9, 9)
	rows := []struct {
		name string
		text string
		want Counters
	}{
		{"the first", other + line(2, 3, 1, 2, 5), Counters{3, 1, 2, 5, 5}},
		{"the same", line(2, 3, 1, 2, 5), Counters{3, 1, 2, 5, 5}},
		{"nearly full", line(2, 0, math.MaxUint32, 2, math.MaxUint32-1), Counters{0, math.MaxUint32, 2, math.MaxUint32 - 1, math.MaxUint32 - 1}},
		{"wrapped around", line(2, 7, 4, 3, 1) + other, Counters{7, 1<<32 + 4, 3, 1<<32 + 1, 1}},
		{"gone", other, Counters{0, 1<<32 + 4, 3, 1<<32 + 1, 1}},
		{"damaged", "    2 4711\n", Counters{0, 1<<32 + 4, 3, 1<<32 + 1, 1}},
	}
	var s sum
	for _, row := range rows {
		if s.read([]byte(row.text), 2); s.total != row.want {
			t.Errorf("%s: %+v, want %+v", row.name, s.total, row.want)
		}
	}
}

func FuzzCounters(f *testing.F) {
	f.Add(line(2, 3, 1, 2, 5)+line(1, 9, 9, 9, 9), uint16(2))
	f.Add("", uint16(0))
	f.Add("2 -1 99999999999999999999 2 2 2 2 2 2", uint16(2))
	f.Fuzz(func(t *testing.T, text string, num uint16) {
		var s sum
		s.read([]byte(text), num)
		first := s.total
		s.read([]byte(text), num)
		if s.total != first {
			t.Errorf("the same text counts twice: %+v, then %+v", first, s.total)
		}
		if !strings.Contains(text, fmt.Sprint(num)) && first != (Counters{}) && num != 0 {
			t.Errorf("%+v of a queue that is not there", first)
		}
	})
}

// meterVariable makes a start of the test binary say how NewMeter fails.
const meterVariable = "DIVERT_QUEUE_TEST_METER"

// TestMeterOfANamespaceOlderThanItsUsers: root's own rights do not help where the user namespace got its users after the network
// namespace was made, and the error says so.
func TestMeterOfANamespaceOlderThanItsUsers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can map other users")
	}
	// Users that this user namespace knows.
	const first, count = 1, 1000
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: first, Size: count}}
	cmd := exec.Command("/proc/self/exe") // its path may be closed to others
	cmd.Env = append(os.Environ(), meterVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Skipf("no such namespaces here: %v", err)
	}
	if got := string(out); !strings.Contains(got, "permission denied") || !strings.Contains(got, "make the network namespace afterwards") {
		t.Errorf("the error is %q", got)
	}
}
