package main

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"time"
)

// The parts of a CycloneDX 1.5 document (cyclonedx.org/docs/1.5/json) that are used.
type bill struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     billMetadata `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type billMetadata struct {
	Timestamp string    `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl"`
	Properties []property `json:"properties,omitempty"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// billOfMaterials writes the list of modules in a binary, read from the binary itself.
func (r *release) billOfMaterials(binary, target string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("divert-%s-%s.cdx.json", r.version, target)
	return r.file(name, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r.bill(info))
	})
}

func (r *release) bill(info *debug.BuildInfo) bill {
	main := module(info.Main.Path, "v"+r.version, "")
	main.Type = "application"
	b := bill{Format: "CycloneDX", Spec: "1.5", Version: 1, Metadata: billMetadata{r.time.Format(time.RFC3339), main}}
	b.Components = append(b.Components, module("stdlib", strings.TrimPrefix(info.GoVersion, "go"), ""))
	for _, d := range info.Deps {
		if d.Replace != nil {
			d = d.Replace
		}
		b.Components = append(b.Components, module(d.Path, d.Version, d.Sum))
	}
	needs := dependency{Ref: main.Ref}
	for _, c := range b.Components {
		needs.DependsOn = append(needs.DependsOn, c.Ref)
	}
	b.Dependencies = []dependency{needs}
	return b
}

// module returns the component for a Go module, with its checksum from go.sum.
func module(path, version, sum string) component {
	purl := "pkg:golang/" + path + "@" + version
	c := component{Type: "library", Ref: purl, Name: path, Version: version, PURL: purl}
	if sum != "" {
		c.Properties = []property{{"go:sum", sum}}
	}
	return c
}
