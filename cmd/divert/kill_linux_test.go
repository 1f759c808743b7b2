package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

// The comment of a rule that claims a handle.
var (
	pidClaim    = regexp.MustCompile(`pid=\d+`)
	handleClaim = regexp.MustCompile(`handle=[0-9a-f]+`)
)

// forgeVariable makes the test binary forge rules that claim handles for a process, and end.
const forgeVariable = "DIVERT_TEST_FORGE"

// forgeAll does so for the process pid.
func forgeAll(pid string) {
	if err := forge(pid); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestKillLeavesStrangersAlone: forged rules that give a process a handle do not make kill end it, and their filters
// send no commands to the terminal. The forger is another user with CAP_NET_ADMIN, if the test may start one.
func TestKillLeavesStrangersAlone(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	drop := start(t, pair.A, "drop", "udp.DstPort == 9")
	victim := exec.Command("sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = victim.Process.Kill() // fails only if the test has failed
		_ = victim.Wait()
	}()
	pid := fmt.Sprint(victim.Process.Pid)
	forger := exec.Command("/proc/self/exe")
	forger.Env = append(os.Environ(), forgeVariable+"="+pid)
	forger.Stderr = os.Stderr
	if initialUserNamespace() && os.Getuid() == 0 {
		forger.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: []uintptr{unix.CAP_NET_ADMIN}}
	}
	if err := pair.A.Exec(forger); err != nil {
		t.Fatal(err)
	}
	out, status := runIn(t, pair.A, "list", "--json")
	if status != 0 || !strings.Contains(out, `owned`) {
		t.Errorf("list --json: %d, %q", status, out)
	}
	clean(t, out, true)
	out, status = runIn(t, pair.A, "list")
	clean(t, out, false)
	if status != 0 || strings.Contains(out, "pid="+pid) || strings.Count(out, "OPEN") != 1 {
		t.Errorf("list: %d, %q", status, out)
	}
	if out, status := runIn(t, pair.A, "kill", pid); status != exitFailed || !strings.Contains(out, "process "+pid+" has no handle open here") {
		t.Errorf("kill: %d, %q", status, out)
	}
	if out, status := runIn(t, pair.A, "kill", "all"); status != 0 || strings.Count(out, "KILL") != 1 {
		t.Errorf("kill all: %d, %q", status, out)
	}
	if _, status := drop.end(t, nil); status != -1 {
		t.Errorf("the killed command ended with status %d", status)
	}
	if err := victim.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the stranger: %v", err)
	}
	if out, status := runIn(t, pair.A, "clean"); status != 0 {
		t.Errorf("clean: %d, %q", status, out)
	}
}

// forge copies each rule of the chain with the handles for another process and another handle, and changes the filter
// of each handle.
func forge(pid string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Name: "divert", Family: nftables.TableFamilyINet}
	chain := &nftables.Chain{Name: "handles", Table: table}
	rules, err := c.GetRules(table, chain)
	if err != nil {
		return err
	}
	for _, r := range rules {
		text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		if id, ok := strings.CutPrefix(handleClaim.FindString(text), "handle="); ok {
			filters := &nftables.Chain{Name: "filter_" + id, Table: table}
			c.FlushChain(filters)
			data := userdata.AppendString(nil, userdata.TypeComment, "divert filter of handle="+id)
			// The type, the number of the part and the number of parts (rules/filter.go).
			c.AddRule(&nftables.Rule{Table: table, Chain: filters, UserData: userdata.Append(data, 0xd1, append([]byte{0, 0, 0, 1}, nasty...))})
		}
		same := pidClaim.ReplaceAllString(text, "pid="+pid)
		for _, claim := range []string{same, handleClaim.ReplaceAllString(same, "handle=1")} {
			forged := &nftables.Rule{Table: table, Chain: chain, UserData: userdata.AppendString(nil, userdata.TypeComment, claim)}
			c.InsertRule(forged) // before the true one
			c.AddRule(forged)    // and after it
		}
	}
	return c.Flush()
}
