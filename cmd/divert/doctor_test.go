package main

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/linux/probe"
	"github.com/opendivert/divert/internal/windows"
)

func TestDiagnosis(t *testing.T) {
	have := probe.Result{Name: "nf_tables", Since: probe.Version{Major: 3, Minor: 14}, For: "rules", OK: true, Tried: true}
	lack := probe.Result{
		Name: "time travel", For: "answers before questions", Tried: true,
		Error: "time travel not supported (requires >= 5.12)", Without: "one has to wait", Remedy: "patience",
	}
	unknown := probe.Result{Name: "fib", Since: probe.Version{Major: 4, Minor: 10}, For: "routes", Error: "fib not available: not tried", Without: "none", Remedy: "none"}
	rows := []struct {
		name   string
		report probe.Report
		want   string
	}{
		{
			"all there", probe.Report{Kernel: "6.1.0", Machine: "x86_64", Probed: "namespace", Here: true, Engine: "eBPF in netfilter", Features: []probe.Result{have}},
			`Linux 6.1.0 x86_64, user 0

Handles can be opened here, and are served by: eBPF in netfilter

FEATURE    LINUX  HERE  USED FOR
nf_tables  3.14   yes   rules
`,
		},
		{
			"an ordinary user", probe.Report{
				Kernel: "5.10", Machine: "aarch64", User: 1000, Probed: "rootless", HereError: "CAP_NET_ADMIN not available",
				Engine: "interpreter", Features: []probe.Result{have, lack},
			},
			`Linux 5.10 aarch64, user 1000

This user cannot open handles in this network: CAP_NET_ADMIN not available
In a network of its own (divert demo, divert lab) it can; they are served by: interpreter
What follows was tried in a user namespace, where less is allowed than root is.

FEATURE      LINUX  HERE  USED FOR
nf_tables    3.14   yes   rules
time travel  -      no    answers before questions

time travel not supported (requires >= 5.12)
  without it: one has to wait
  remedy: patience
`,
		},
		{
			"not even a handle was tried", probe.Report{
				Kernel: "5.10", Machine: "x86_64", Probed: "nowhere", ProbedError: "no namespaces",
				HereError: fmt.Sprintf("%v: there is no network namespace to try it in", probe.ErrNotTried),
				Features:  []probe.Result{unknown},
			},
			`Linux 5.10 x86_64, user 0

Whether handles can be opened here could not be tried: there is no network namespace to try it in
Most of what follows could not be tried: no namespaces

FEATURE  LINUX  HERE  USED FOR
fib      4.10   ?     routes
`,
		},
		{
			"nothing can be tried", probe.Report{
				Kernel: "5.10", Machine: "x86_64", Probed: "nowhere", ProbedError: "no namespaces", HereTried: true, HereError: "no rights",
				Features: []probe.Result{unknown},
			},
			`Linux 5.10 x86_64, user 0

Handles cannot be opened here: no rights
Most of what follows could not be tried: no namespaces

FEATURE  LINUX  HERE  USED FOR
fib      4.10   ?     routes
`,
		},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var plain, coloured bytes.Buffer
			if err := (&app{out: &plain}).diagnosis(&row.report); err != nil {
				t.Fatal(err)
			}
			if plain.String() != row.want {
				t.Errorf("got\n%s\nwant\n%s", &plain, row.want)
			}
			if err := (&app{out: &coloured, colour: true}).diagnosis(&row.report); err != nil {
				t.Fatal(err)
			}
			bare := strings.NewReplacer(styleInfo.begin, "", styleBad.begin, "", styleTime.begin, "", styleEnd, "").Replace(coloured.String())
			if bare != row.want || coloured.String() == row.want {
				t.Errorf("in colour %q", &coloured)
			}
		})
	}
}

func TestDriverDiagnosis(t *testing.T) {
	file := windows.Check{Name: "driver file", OK: true, Found: `C:\WinDivert64.sys`}
	rights := windows.Check{Name: "rights", Found: "Windows error 5", Without: "no driver", Remedy: "run it as Administrator"}
	rows := []struct {
		name   string
		report windows.Report
		want   string
	}{
		{
			"the driver runs", windows.Report{System: "Windows 10.0.1", Machine: "amd64", Program: "386", Handles: true, Engine: "WinDivert driver 2.2", Checks: []windows.Check{file}},
			`Windows 10.0.1 amd64, program for 386

Handles can be opened here, and are served by: WinDivert driver 2.2

NEEDED       OK   FOUND
driver file  yes  C:\WinDivert64.sys
`,
		},
		{
			"the driver can be installed", windows.Report{System: "Windows 10.0.1", Machine: "amd64", Program: "amd64", Handles: true, Checks: []windows.Check{file}},
			`Windows 10.0.1 amd64, program for amd64

Handles can be opened here: the first one installs and starts the driver.

NEEDED       OK   FOUND
driver file  yes  C:\WinDivert64.sys
`,
		},
		{
			"something is missing", windows.Report{System: "Windows 10.0.1", Machine: "amd64", Program: "amd64", Checks: []windows.Check{file, rights}},
			`Windows 10.0.1 amd64, program for amd64

Handles cannot be opened here.

NEEDED       OK   FOUND
driver file  yes  C:\WinDivert64.sys
rights       no   Windows error 5

rights: Windows error 5
  without it: no driver
  remedy: run it as Administrator
`,
		},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var got bytes.Buffer
			if err := (&app{out: &got}).driverDiagnosis(&row.report); err != nil {
				t.Fatal(err)
			}
			if got.String() != row.want {
				t.Errorf("got\n%s\nwant\n%s", &got, row.want)
			}
		})
	}
}

// TestDriverElsewhere checks that --driver is an error on systems without a driver.
func TestDriverElsewhere(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("this system has a driver")
	}
	for _, args := range [][]string{{"drop", "udp"}, {"sockets"}, {"list"}, {"doctor"}} {
		r := runCommand(t, "", append(args, "--driver", "WinDivert64.sys")...)
		want := "divert: --driver is for Windows only: here divert needs only the kernel\nSee `divert " + args[0] + " --help`.\n"
		if r.status != exitUsage || r.errout != want || r.out != "" {
			t.Errorf("%v: status %d, %s%s", args, r.status, r.out, r.errout)
		}
	}
}
