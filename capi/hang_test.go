//go:build linux

package main_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// TestHangInTheEnvironment: the environment may ask for a guard, except for handles that sniff; an invalid time is an
// error. Package e2e tests the guard's effect.
func TestHangInTheEnvironment(t *testing.T) {
	program := compile(t, "hang.c", gccModern)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	if err := pair.A.Do(func() error {
		d, err := divert.Open("udp", divert.WithPassOnHang(divert.MinHang))
		if err == nil {
			err = d.Close()
		}
		return err
	}); err != nil {
		t.Skipf("no guard here: %v", err)
	}
	for _, row := range []struct {
		env  string
		want string
		args []string
	}{
		{"DIVERT_PASS_ON_HANG=2000", "0", nil}, {"DIVERT_DROP_ON_HANG=2000", "0", nil}, {"DIVERT_PASS_ON_HANG=", "0", nil},
		{"DIVERT_PASS_ON_HANG=99", "87", nil}, {"DIVERT_DROP_ON_HANG=99", "87", nil}, {"DIVERT_PASS_ON_HANG=2s", "87", nil},
		{"DIVERT_DROP_ON_HANG=-2000", "87", nil}, {"DIVERT_PASS_ON_HANG=3600001", "87", nil}, {"DIVERT_PASS_ON_HANG=99999999999999999999", "87", nil},
		{"DIVERT_PASS_ON_HANG=2000 DIVERT_DROP_ON_HANG=2000", "87", nil},
		{"DIVERT_PASS_ON_HANG=99", "0", []string{"sniff"}},
	} {
		var out strings.Builder
		c := exec.Command(program, row.args...)
		c.Env = append(os.Environ(), strings.Fields(row.env)...)
		c.Stdout, c.Stderr = &out, &out
		if err := pair.A.Start(c); err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err != nil || strings.TrimSpace(out.String()) != row.want {
			t.Errorf("%s %v: %v, error %s, want %s", row.env, row.args, err, strings.TrimSpace(out.String()), row.want)
		}
	}
}
