package main

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/template"
	"time"
)

// nfpm makes packages. It is run by version, so it is not a dependency of the module.
const nfpm = "github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.0"

// maintainer is the contact for the packages.
const maintainer = "Divert maintainers <opendivert@users.noreply.github.com>"

// templates describe the packages to nfpm.
//
//go:embed *.yaml.in
var templates embed.FS

// triplets are Debian's names for architectures in paths.
var triplets = map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}

// description is the data for a template.
type description struct {
	Version, Arch, Maintainer  string
	Root, Work, Binaries, Docs string // folders
	LibDir                     string // folder of libraries on the target system
	Packager                   string // deb or rpm
}

// packages makes the Debian and RPM packages for an architecture.
func (r *release) packages(arch string) error {
	for _, packager := range []string{"deb", "rpm"} {
		d := description{
			Version: r.version, Arch: arch, Maintainer: maintainer, Root: r.root, Work: r.work,
			Binaries: filepath.Join(r.work, "linux-"+arch), Docs: filepath.Join(r.work, "docs"),
			LibDir: "/usr/lib/" + triplets[arch], Packager: packager,
		}
		if packager == "rpm" {
			d.LibDir = "/usr/lib64"
		}
		for _, name := range []string{"divert", "libwindivert", "libwindivert-dev"} {
			config := filepath.Join(r.work, fmt.Sprintf("%s-%s-%s.yaml", name, packager, arch))
			if err := d.write(name, config); err != nil {
				return err
			}
			if err := r.command(nil, "go", "run", nfpm, "package", "-f", config, "-p", packager, "-t", r.out+"/"); err != nil {
				return err
			}
		}
	}
	return nil
}

// write writes the configuration of a package.
func (d description) write(name, to string) error {
	t, err := template.ParseFS(templates, name+".yaml.in")
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, d); err != nil {
		return err
	}
	return os.WriteFile(to, b.Bytes(), 0o644)
}

// documents makes the manual pages, the completions of shells, and the papers of packages.
func (r *release) documents() error {
	docs := filepath.Join(r.work, "docs")
	tool := filepath.Join(r.work, "divert")
	if err := r.build(tool, runtime.GOOS, runtime.GOARCH, nil, "./cmd/divert"); err != nil {
		return err
	}
	if err := r.command(nil, tool, "man", filepath.Join(docs, "man")); err != nil {
		return err
	}
	manual, err := os.ReadFile(filepath.Join(r.root, "capi", "windivert.7"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(docs, "man", "man7", "windivert.7"), manual, 0o644); err != nil {
		return err
	}
	pages, err := filepath.Glob(filepath.Join(docs, "man", "man*", "*"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		if err := pack(page, page+".gz"); err != nil {
			return err
		}
		if err := os.Remove(page); err != nil {
			return err
		}
	}
	for shell, name := range map[string]string{"bash": "divert", "zsh": "_divert", "fish": "divert.fish"} {
		text, err := exec.Command(tool, "completion", shell).Output()
		if err != nil {
			return fmt.Errorf("divert completion %s: %w", shell, err)
		}
		if err := os.WriteFile(filepath.Join(docs, name), text, 0o644); err != nil {
			return err
		}
	}
	if err := pack(filepath.Join(r.root, "CHANGELOG.md"), filepath.Join(docs, "changelog.gz")); err != nil {
		return err
	}
	for _, name := range []string{"divert", "libwindivert", "libwindivert-dev"} {
		text := fmt.Sprintf("%s (%s-1) unstable; urgency=medium\n\n  * Divert %s. What has changed:\n    /usr/share/doc/%s/changelog.gz\n\n -- %s  %s\n",
			name, r.version, r.version, name, maintainer, r.time.Format(time.RFC1123Z))
		file := filepath.Join(docs, name+".changelog")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		if err := pack(file, file+".gz"); err != nil {
			return err
		}
	}
	return r.pkgConfig(docs)
}

// pkgConfig writes the pkg-config files; their library folder depends on the system.
func (r *release) pkgConfig(docs string) error {
	text, err := os.ReadFile(filepath.Join(r.root, "capi", "windivert.pc.in"))
	if err != nil {
		return err
	}
	folders := map[string]string{"rpm": "/usr/lib64"}
	for arch, triplet := range triplets {
		folders["deb-"+arch] = "/usr/lib/" + triplet
	}
	for name, folder := range folders {
		of := strings.NewReplacer("@PREFIX@", "/usr", "@LIBDIR@", folder, "@INCLUDEDIR@", "/usr/include", "@VERSION@", "2.2.0")
		if err := os.WriteFile(filepath.Join(docs, "windivert-"+name+".pc"), []byte(of.Replace(string(text))), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// pack compresses a file like gzip -9n: without name and time.
func pack(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(b); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return os.WriteFile(to, packed.Bytes(), 0o644)
}
