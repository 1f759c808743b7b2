package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"html/template"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// playground is the folder of the page for trying filters.
const playground = "playground"

// writePlayground writes the page for trying filters, without the compiler.
func (b *book) writePlayground(out string) error {
	folder := filepath.Join(out, playground)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	body, err := theme.ReadFile("theme/playground/body.html")
	if err != nil {
		return err
	}
	script, err := theme.ReadFile("theme/playground/playground.js")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "playground.js"), script, 0o644); err != nil {
		return err
	}
	v := view{Book: b.view(), Page: playground + "/index.html", Title: "Playground", Up: "../", Body: template.HTML(body)}
	return v.write(filepath.Join(folder, "index.html"))
}

// writeCompiler builds the compiler of filters as WebAssembly and writes it as a compressed script: a page opened from
// a file may load only scripts. It also writes Go's own script, which starts it.
func writeCompiler(root, out string) error {
	dir, err := os.MkdirTemp("", "divert-site")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "divert.wasm")
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", binary, "./docs/site/playground/wasm")
	build.Dir = root
	build.Env = append(os.Environ(), "GOOS=js", "GOARCH=wasm")
	if text, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build of the playground: %w\n%s", err, text)
	}
	code, err := os.ReadFile(binary)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(code); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	script := "const compiler = \"" + base64.StdEncoding.EncodeToString(packed.Bytes()) + "\";\n"
	if err := os.WriteFile(filepath.Join(out, playground, "divert.js"), []byte(script), 0o644); err != nil {
		return err
	}
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("go env GOROOT: %w", err)
	}
	starter, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(goroot)), "lib", "wasm", "wasm_exec.js"))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, playground, "wasm_exec.js"), starter, 0o644)
}
