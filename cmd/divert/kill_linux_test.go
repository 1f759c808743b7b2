package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"

	"github.com/opendivert/divert/internal/lab"
)

// What the comment of a handle's rule claims.
var (
	pidClaim    = regexp.MustCompile(`pid=\d+`)
	handleClaim = regexp.MustCompile(`handle=[0-9a-f]+`)
)

// TestKillLeavesStrangersAlone: rules that say that a process has a handle, which it has not, do not end it.
func TestKillLeavesStrangersAlone(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	drop := start(t, pair.A, "drop", "udp.DstPort == 9")
	victim := exec.Command("sleep", "1000")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = victim.Process.Kill() // unless the test has failed
		_ = victim.Wait()
	}()
	pid := fmt.Sprint(victim.Process.Pid)
	if err := pair.A.Do(func() error { return forge(pid) }); err != nil {
		t.Fatal(err)
	}
	if out, status := runIn(t, pair.A, "list"); status != 0 || strings.Contains(out, "pid="+pid) || strings.Count(out, "OPEN") != 1 {
		t.Errorf("list: %d, %q", status, out)
	}
	if out, status := runIn(t, pair.A, "kill", pid); status != exitFailed || !strings.Contains(out, "process "+pid+" has no handle open here") {
		t.Errorf("kill: %d, %q", status, out)
	}
	if out, status := runIn(t, pair.A, "kill", "all"); status != 0 || strings.Count(out, "KILL") != 1 {
		t.Errorf("kill all: %d, %q", status, out)
	}
	if _, status := drop.end(t, nil); status != -1 {
		t.Errorf("the killed ended with %d", status)
	}
	if err := victim.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the stranger: %v", err)
	}
	if out, status := runIn(t, pair.A, "clean"); status != 0 {
		t.Errorf("clean: %d, %q", status, out)
	}
}

// forge copies each rule of the chain with the handles, with another process and another handle.
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
		same := pidClaim.ReplaceAllString(text, "pid="+pid)
		for _, claim := range []string{same, handleClaim.ReplaceAllString(same, "handle=1")} {
			forged := &nftables.Rule{Table: table, Chain: chain, UserData: userdata.AppendString(nil, userdata.TypeComment, claim)}
			c.InsertRule(forged) // before the true one
			c.AddRule(forged)    // and behind it
		}
	}
	return c.Flush()
}
