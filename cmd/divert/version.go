package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

func newVersion(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of divert and of the interface it follows",
		Example: "  divert version",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			if asJSON {
				return a.writeJSON(jsonVersion{buildVersion(), "2.2", runtime.Version(), runtime.GOOS, runtime.GOARCH})
			}
			_, err := io.WriteString(a.out, versionText())
			return err
		},
	}
	addJSON(cmd, &asJSON, "one JSON object")
	return cmd
}

// jsonVersion is the output of `version`.
type jsonVersion struct {
	Version   string `json:"version"`
	WinDivert string `json:"windivert"` // the version of WinDivert's interface that it follows
	Go        string `json:"go"`
	OS        string `json:"os"`
	Arch      string `json:"arch"`
}

// versionText returns the line with the version.
func versionText() string {
	return fmt.Sprintf("divert %s (WinDivert 2.2 interface), %s, %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// release is the version of a release; packaging/release sets it at build time.
var release string

// buildVersion returns the version of the release or, without one, the version that the module system or version
// control gave the build.
func buildVersion() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// noArguments is for commands that take none.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, but there is %q", cmd.Name(), args[0])
	}
	return nil
}
