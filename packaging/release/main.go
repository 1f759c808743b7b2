// Command release builds everything that a release of Divert publishes, and publishes nothing: binaries, Debian and RPM
// packages, bills of materials, and checksums. Its output depends only on the sources, the version of Go and the time
// of the release, so two runs build the same bytes.
//
//	go run ./packaging/release [-arch amd64,arm64] OUT
//
// The version is in packaging/VERSION. The time is that of the last commit, or SOURCE_DATE_EPOCH, in seconds since
// 1970. Besides Go it needs gcc for libwindivert, and aarch64-linux-gnu-gcc for libwindivert on arm64.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// release is one run.
type release struct {
	root    string // folder of the repository
	out     string // for the published files
	work    string // for temporary files
	version string
	time    time.Time
	log     io.Writer
}

// compilers are the C compilers for the library, by architecture; "gcc" also serves the machine's own.
var compilers = map[string]string{"amd64": "x86_64-linux-gnu-gcc", "arm64": "aarch64-linux-gnu-gcc"}

// run executes the arguments and returns the exit status.
func run(args []string, out, errout io.Writer) int {
	flags := flag.NewFlagSet("release", flag.ContinueOnError)
	flags.SetOutput(errout)
	arch := flags.String("arch", "amd64,arm64", "`architectures` of Linux, with commas")
	flags.Usage = func() {
		fmt.Fprintln(errout, "usage: go run ./packaging/release [-arch amd64,arm64] OUT")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() != 1 {
		flags.Usage()
		return 2
	}
	list := strings.Split(*arch, ",")
	for _, a := range list {
		if compilers[a] == "" {
			fmt.Fprintf(errout, "release: -arch %s: packages are made for amd64 and arm64\n", a)
			return 2
		}
	}
	r, err := prepare(flags.Arg(0), out)
	if err == nil {
		err = r.make(list)
		err = errors.Join(err, os.RemoveAll(r.work))
	}
	if err != nil {
		fmt.Fprintf(errout, "release: %v\n", err)
		return 1
	}
	return 0
}

// prepare determines the version and makes the folders.
func prepare(out string, log io.Writer) (*release, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	r := &release{root: root, log: log}
	version, err := os.ReadFile(filepath.Join(root, "packaging", "VERSION"))
	if err != nil {
		return nil, err
	}
	r.version = strings.TrimSpace(string(version))
	if r.time, err = releaseTime(root); err != nil {
		return nil, err
	}
	if r.out, err = filepath.Abs(out); err != nil {
		return nil, err
	}
	if left, err := os.ReadDir(r.out); err == nil && len(left) > 0 {
		return nil, fmt.Errorf("%s is not empty: name a folder that is, or that is not there", out)
	}
	if err := os.MkdirAll(r.out, 0o755); err != nil {
		return nil, err
	}
	r.work, err = os.MkdirTemp("", "divert-release")
	return r, err
}

// repository returns the folder of the module around the working directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "packaging", "VERSION")); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no packaging/VERSION in %s or above it: run this in a clone of the repository", dir)
		}
	}
}

// releaseTime returns the time of all files of the release.
func releaseTime(root string) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		git := exec.Command("git", "log", "-1", "--format=%ct")
		git.Dir = root
		b, err := git.Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("git log cannot tell the time of the last commit (%w): set SOURCE_DATE_EPOCH to the time of the release", err)
		}
		text = strings.TrimSpace(string(b))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q, and should be a number of seconds since 1970", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// make builds everything.
func (r *release) make(arch []string) error {
	fmt.Fprintf(r.log, "Divert %s of %s\n", r.version, r.time.Format(time.RFC3339))
	if err := r.documents(); err != nil {
		return err
	}
	for _, a := range arch {
		if err := r.linux(a); err != nil {
			return err
		}
	}
	if err := r.windows(); err != nil {
		return err
	}
	return r.checksums()
}

// linux builds the archive and the packages for an architecture.
func (r *release) linux(arch string) error {
	binary := filepath.Join(r.work, "linux-"+arch, "divert")
	if err := r.build(binary, "linux", arch, nil, "./cmd/divert"); err != nil {
		return err
	}
	if err := r.library(arch); err != nil {
		return err
	}
	if err := r.billOfMaterials(binary, "linux-"+arch); err != nil {
		return err
	}
	name := fmt.Sprintf("divert-%s-linux-%s", r.version, arch)
	if err := r.tarball(name, append(r.papers(), entry{binary, "divert", 0o755})); err != nil {
		return err
	}
	return r.packages(arch)
}

// windows builds the archive for Windows.
func (r *release) windows() error {
	binary := filepath.Join(r.work, "windows-amd64", "divert.exe")
	if err := r.build(binary, "windows", "amd64", nil, "./cmd/divert"); err != nil {
		return err
	}
	if err := r.billOfMaterials(binary, "windows-amd64"); err != nil {
		return err
	}
	return r.zip(fmt.Sprintf("divert-%s-windows-amd64", r.version), append(r.papers(), entry{binary, "divert.exe", 0o755}))
}

// papers are the texts that accompany every binary.
func (r *release) papers() []entry {
	var all []entry
	for _, name := range []string{"LICENSE", "COPYING.GPL", "README.md", "CHANGELOG.md"} {
		all = append(all, entry{filepath.Join(r.root, name), name, 0o644})
	}
	return all
}

// build builds a program or, with a C compiler among the settings, a library.
func (r *release) build(to, system, arch string, settings []string, more ...string) error {
	flags := "-s -w -buildid= -X main.release=" + r.version
	args := []string{"build", "-trimpath", "-buildvcs=false", "-o", to}
	if settings == nil {
		settings = []string{"CGO_ENABLED=0"}
	} else {
		flags += " -extldflags '-Wl,--build-id=none -Wl,-soname,libwindivert.so.2 -Wl,--version-script=" + filepath.Join(r.root, "capi", "windivert.map") + "'"
		args = append(args, "-buildmode=c-shared")
	}
	args = append(args, "-ldflags", flags)
	return r.command(append(settings, "GOOS="+system, "GOARCH="+arch, "GOFLAGS="), "go", append(args, more...)...)
}

// library builds libwindivert.
func (r *release) library(arch string) error {
	compiler := compilers[arch]
	if _, err := exec.LookPath(compiler); err != nil {
		return fmt.Errorf("there is no %s, which libwindivert for %s takes (Debian: apt-get install gcc-%s)", compiler, arch, strings.ReplaceAll(strings.TrimSuffix(compiler, "-gcc"), "_", "-"))
	}
	to := filepath.Join(r.work, "linux-"+arch, "libwindivert.so")
	if err := r.build(to, "linux", arch, []string{"CGO_ENABLED=1", "CC=" + compiler}, "./capi"); err != nil {
		return err
	}
	return os.Remove(strings.TrimSuffix(to, ".so") + ".h") // windivert.h is the header
}

// command runs a command in the repository.
func (r *release) command(settings []string, name string, args ...string) error {
	c := exec.Command(name, args...)
	c.Dir = r.root
	c.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+strconv.FormatInt(r.time.Unix(), 10), "LC_ALL=C", "TZ=UTC")
	c.Env = append(c.Env, settings...)
	fmt.Fprintf(r.log, "$ %s\n", strings.Join(slices.Concat(settings, []string{name}, args), " "))
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, out)
	}
	return nil
}
