package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
)

// setFiles maps named sets to their files, those of --set and those in the text of the filter.
type setFiles struct {
	given []string // NAME=FILE, of --set
	files map[string]string
	own   string // a set without a file, filled by the command itself
}

// add adds the flag.
func (s *setFiles) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&s.given, "set", nil,
		"`NAME=FILE`: the members of the set @NAME in the filter, one prefix, address, number or range a line; "+
			"@NAME=FILE in the filter is the same; the file is read again when it changes, and on SIGHUP")
}

// fileInFilter is a named set with its file, as in the text of a filter.
var fileInFilter = regexp.MustCompile(`(\bin\s*@[\w.-]+)=([^\s()]+)`)

// take removes the files from the text of a filter, and returns the remaining text.
func (s *setFiles) take(text string) (string, error) {
	for _, given := range s.given {
		name, file, ok := strings.Cut(given, "=")
		if !ok || file == "" || !filter.ValidName(name) {
			return "", usagef("--set %s: it is NAME=FILE, such as blocked=blocked.txt for @blocked", given)
		}
		if err := s.put(name, file); err != nil {
			return "", err
		}
	}
	for _, m := range fileInFilter.FindAllStringSubmatch(text, -1) {
		if err := s.put(m[1][strings.Index(m[1], "@")+1:], m[2]); err != nil {
			return "", err
		}
	}
	return fileInFilter.ReplaceAllString(text, "$1"), nil
}

// put records the file of a set.
func (s *setFiles) put(name, file string) error {
	if before, given := s.files[name]; given && before != file {
		return usagef("the set @%s is given two files, %s and %s", name, before, file)
	}
	if s.files == nil {
		s.files = make(map[string]string)
	}
	s.files[name] = file
	return nil
}

// names returns the names of the sets that need files.
func (s *setFiles) names(p *filter.Program) []string {
	return slices.DeleteFunc(p.Sets(), func(name string) bool { return s.own != "" && name == s.own })
}

// check compares the files with the sets of a filter. A set without a file is an error only if the filter will be used.
func (s *setFiles) check(p *filter.Program, used bool) error {
	names := s.names(p)
	for name := range s.files {
		if !slices.Contains(names, name) {
			return usagef("the filter has no set @%s, but --set gives it a file", name)
		}
	}
	for _, name := range names {
		if s.files[name] == "" && used {
			return usagef("the set @%s has no file: write @%s=FILE in the filter, or --set %s=FILE", name, name, name)
		}
	}
	return nil
}

// load reads the files of a filter's sets.
func (s *setFiles) load(p *filter.Program) error {
	if err := s.check(p, true); err != nil {
		return err
	}
	for _, name := range s.names(p) {
		if err := p.Set(name).Load(s.files[name]); err != nil {
			return setError(name, err)
		}
	}
	return nil
}

// setError adds the name of the set to an error.
func setError(name string, err error) error {
	return fmt.Errorf("the set @%s: %w", name, err)
}

// follow reads the files of a filter's sets, and again on each change and on SIGHUP, until the context ends. It reports
// each reading to r.
func (s *setFiles) follow(ctx context.Context, p *filter.Program, r *report) error {
	if err := s.check(p, true); err != nil {
		return err
	}
	names := s.names(p)
	if len(names) == 0 {
		return nil
	}
	told := func(name string) func(error) {
		return func(err error) { r.reread(name, s.files[name], err) }
	}
	for _, name := range names {
		if err := p.Set(name).Follow(ctx, s.files[name], told(name)); err != nil {
			return setError(name, err)
		}
	}
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	go func() {
		defer signal.Stop(again)
		for {
			select {
			case <-ctx.Done():
				return
			case <-again:
			}
			for _, name := range names {
				told(name)(p.Set(name).Load(s.files[name]))
			}
		}
	}()
	return nil
}

// setRead is the JSON line about a file that was read again.
type setRead struct {
	Event string `json:"event"` // "set"
	Set   string `json:"set"`
	File  string `json:"file"`
}

// reread reports that the file of a set was read again, or the error.
func (r *report) reread(name, file string, err error) {
	switch {
	case err != nil:
		r.warn(fmt.Errorf("%w; the set stays as it was", setError(name, err)))
	case r.json:
		r.line(setRead{"set", name, file})
	default:
		fmt.Fprintf(r.app.errout, "divert: the set @%s was read again from %s\n", name, file)
	}
}
