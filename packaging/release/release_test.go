package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// TestUsage: wrong arguments are refused with a reason.
func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "usage:"}, {[]string{"a", "b"}, "usage:"}, {[]string{"-arch", "mips", "out"}, "-arch mips"}, {[]string{"-arch", "", "out"}, "-arch"},
	} {
		var errout bytes.Buffer
		if got := run(test.args, io.Discard, &errout); got != 2 || !strings.Contains(errout.String(), test.want) {
			t.Errorf("%q: status %d, %q; want %q", test.args, got, errout.String(), test.want)
		}
	}
}

// TestPrepare: an impossible release is refused before anything is built.
func TestPrepare(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(full, io.Discard); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("a folder with something in it: %v", err)
	}
	r, err := prepare(filepath.Join(t.TempDir(), "new"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(r.work)
	if !regexp.MustCompile(`^\d+\.\d+\.\d+(~\w+)?$`).MatchString(r.version) || r.time.Unix() != 1700000000 {
		t.Errorf("version %q of %v", r.version, r.time)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := prepare(t.TempDir(), io.Discard); err == nil || !strings.Contains(err.Error(), `"yesterday"`) {
		t.Errorf("a wrong time: %v", err)
	}
}

// TestArchives: archives and checksums are the same in each run, and other programs can read them.
func TestArchives(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var sums [2]string
	for i := range sums {
		r := &release{out: t.TempDir(), time: time.Unix(1700000000, 0).UTC()}
		entries := []entry{{file, "divert", 0o755}}
		if err := r.tarball("x", entries); err != nil {
			t.Fatal(err)
		}
		if err := r.zip("x", entries); err != nil {
			t.Fatal(err)
		}
		if err := r.checksums(); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(r.out, "SHA256SUMS"))
		if err != nil {
			t.Fatal(err)
		}
		sums[i] = string(b)
		check := exec.Command("sha256sum", "-c", "SHA256SUMS")
		check.Dir = r.out
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("sha256sum -c: %v\n%s", err, out)
		}
		list, err := exec.Command("tar", "-tvzf", filepath.Join(r.out, "x.tar.gz")).Output()
		if err != nil || !strings.Contains(string(list), "-rwxr-xr-x") || !strings.Contains(string(list), "x/divert") {
			t.Errorf("tar lists %s, %v", list, err)
		}
	}
	if sums[0] != sums[1] || strings.Count(sums[0], "\n") != 2 {
		t.Errorf("checksums %q and %q", sums[0], sums[1])
	}
}

// TestBillOfMaterials: the list contains the modules in this test binary.
func TestBillOfMaterials(t *testing.T) {
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	info.Deps = append(info.Deps, &debug.Module{Path: "example.com/a", Version: "v1.2.3", Sum: "h1:x"},
		&debug.Module{Path: "example.com/b", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/c", Version: "v2.0.0"}})
	r := &release{version: "1.2.3", time: time.Unix(1700000000, 0).UTC()}
	text, err := json.Marshal(r.bill(info))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"bomFormat":"CycloneDX"`, `"timestamp":"2023-11-14T22:13:20Z"`, `"purl":"pkg:golang/stdlib@1.`,
		`"purl":"pkg:golang/example.com/a@v1.2.3","properties":[{"name":"go:sum","value":"h1:x"}]`, `"pkg:golang/example.com/c@v2.0.0"`} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the list lacks %s: %s", want, text)
		}
	}
	if bytes.Contains(text, []byte("example.com/b")) {
		t.Errorf("the list has a module that is replaced: %s", text)
	}
}

// TestDescriptions: the contents of the packages exist, for each packager and architecture.
func TestDescriptions(t *testing.T) {
	root, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	inRepository := regexp.MustCompile(regexp.QuoteMeta(root) + `/[^,\s]+`)
	for _, packager := range []string{"deb", "rpm"} {
		for _, name := range []string{"divert", "libwindivert", "libwindivert-dev"} {
			d := description{Version: "1.2.3", Arch: "arm64", Maintainer: maintainer, Root: root, Work: "/w", Binaries: "/b", Docs: "/d", LibDir: "/l", Packager: packager}
			file := filepath.Join(t.TempDir(), "config")
			if err := d.write(name, file); err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, source := range inRepository.FindAllString(string(text), -1) {
				if _, err := os.Stat(source); err != nil {
					t.Errorf("%s for %s: %v", name, packager, err)
				}
			}
			if strings.Contains(string(text), "deb-") && packager == "rpm" || strings.Contains(string(text), "<no value>") {
				t.Errorf("%s for %s:\n%s", name, packager, text)
			}
		}
	}
}

// TestUnits: systemd accepts the units, and the template contains every part of the firewall's shield.
func TestUnits(t *testing.T) {
	var units [2]string
	for i, name := range []string{"divert-firewall.service", "divert@.service"} {
		b, err := os.ReadFile("../systemd/" + name)
		if err != nil {
			t.Fatal(err)
		}
		units[i] = string(b)
	}
	for line := range strings.Lines(units[0]) {
		if regexp.MustCompile(`^(User|Ambient|Capability|NoNew|Protect|Private|Restrict|Lock|Memory|SystemCall|Device|UMask|Limit)`).MatchString(line) && !strings.Contains(units[1], line) {
			t.Errorf("divert@.service lacks %s", line)
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze")
	}
	// The program is not installed here: another one stands in for it.
	dir := t.TempDir()
	for i, name := range []string{"divert-firewall.service", "divert@.service"} {
		text := strings.ReplaceAll(units[i], "/usr/bin/divert", "/bin/true")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "--man=no", "verify", filepath.Join(dir, name)).CombinedOutput()
		if strings.Contains(string(out), "Failed to") && !strings.Contains(string(out), name) {
			t.Skipf("systemd-analyze does not work here: %s", out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, name) {
				t.Errorf("systemd-analyze (%v): %s", err, line)
			}
		}
	}
}
