package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// generated makes the files of docs/ that are generated from code, by path in docs/.
var generated = map[string]func() ([]byte, error){
	"fields.md":               fieldsPage,
	"pictures/path.svg":       pathPicture,
	"pictures/priorities.svg": priorityPicture,
	"pictures/terminal.svg":   terminalPicture,
}

// writeGenerated writes the generated files of docs/.
func writeGenerated(root string) error {
	var names []string
	for name := range generated {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		content, err := generated[name]()
		if err != nil {
			return fmt.Errorf("docs/%s: %w", name, err)
		}
		file := filepath.Join(root, "docs", filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
