package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestBook checks every divert command in the code blocks of the manual: it must accept the flags and arguments, and
// the filter must compile at its layer.
func TestBook(t *testing.T) {
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, file := range append(files, "../../README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line, commands := range commandsOf(t, string(text)) {
			for _, words := range commands {
				checked++
				if err := takes(words); err != nil {
					t.Errorf("%s:%d: divert %s: %v", file, line, strings.Join(words, " "), err)
				}
			}
		}
	}
	if checked < 20 {
		t.Errorf("found %d commands: is the manual read as it is written?", checked)
	}
}

// TestWrongBook checks that TestBook finds mistakes.
func TestWrongBook(t *testing.T) {
	text := "    divert dump tpc\n\n```sh\nsudo divert drop --sniff udp\necho x | divert list a b && \\\n    divert nothing # no comment\n```\n" +
		"```go\ndivert no command\n```\n\n    divert sockets ifIdx == 4\n    X=1 divert filter check 'tcp  or udp' > out.txt\n"
	var wrong []int
	found := 0
	for line, commands := range commandsOf(t, text) {
		for _, words := range commands {
			found++
			if takes(words) != nil {
				wrong = append(wrong, line)
			}
		}
	}
	slices.Sort(wrong)
	if want := []int{1, 4, 5, 5, 12}; found != 6 || !slices.Equal(wrong, want) {
		t.Errorf("of %d commands those on lines %d are wrong, and should be those on %d", found, wrong, want)
	}
}

// commandsOf returns the arguments of the divert commands in the code blocks of a page, by line number.
func commandsOf(t *testing.T, text string) map[int][][]string {
	t.Helper()
	commands := map[int][][]string{}
	fence, before := "", ""
	begin := 0
	for i, line := range strings.Split(text, "\n") {
		if language, ok := strings.CutPrefix(line, "```"); ok {
			if fence == "" {
				fence = "```" + language
			} else {
				fence = ""
			}
			continue
		}
		code, indented := strings.CutPrefix(line, "    ")
		switch {
		case fence == "" && !indented, fence != "" && fence != "```" && fence != "```sh":
			continue
		case fence != "":
			code = line
		}
		if before == "" {
			begin = i + 1
		}
		if rest, ok := strings.CutSuffix(code, "\\"); ok {
			before += rest + " "
			continue
		}
		for _, words := range split(before + code) {
			if words = slices.DeleteFunc(words, func(w string) bool { return w == "sudo" || assignment.MatchString(w) }); len(words) > 0 && words[0] == "divert" {
				commands[begin] = append(commands[begin], words[1:])
			}
		}
		before = ""
	}
	return commands
}

var assignment = regexp.MustCompile(`^[A-Z_]+=`)

// split splits a line as a shell does, into commands and these into words. It leaves out redirections.
func split(line string) (commands [][]string) {
	var words []string
	word, open, quote := "", false, rune(0)
	end := func() {
		if open {
			words = append(words, word)
		}
		word, open = "", false
	}
	skip := false // the file name of a redirection
	for _, r := range line + "\n" {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == '#' && !open:
			return append(commands, words)
		case r == ' ' || r == '\t' || r == '\n':
			if skip && open {
				word, open, skip = "", false, false
			}
			end()
		case strings.ContainsRune("|;&", r):
			end()
			commands = append(commands, words)
			words = nil
		case r == '>' || r == '<':
			end()
			skip = true
		default:
			word, open = word+string(r), true
		}
	}
	return append(commands, words)
}

// layersOf are the layers of commands that have no flag for the layer.
var layersOf = map[string]divert.Layer{
	"sockets": divert.LayerSocket, "flows": divert.LayerFlow, "list": divert.LayerReflect, "watch": divert.LayerReflect,
}

// setFile is a named set with its file.
var setFile = regexp.MustCompile(`(@[\w.-]+)=[^\s,)]+`)

// takes checks the arguments of the divert command, as far as possible without running it.
func takes(args []string) error {
	a := &app{in: strings.NewReader(""), out: io.Discard, errout: io.Discard}
	root := a.newRoot()
	root.InitDefaultCompletionCmd()
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	cmd.SetContext(context.Background())
	cmd.InitDefaultHelpFlag()
	if err := cmd.ParseFlags(rest); err != nil {
		return err
	}
	args = cmd.Flags().Args()
	if err := cmd.ValidateArgs(args); err != nil {
		return err
	}
	if err := cmd.ValidateRequiredFlags(); err != nil {
		return err
	}
	if cmd == root && len(args) > 0 {
		return fmt.Errorf("there is no command %s", args[0])
	}
	return compiles(cmd, args)
}

// compiles checks the filter among the arguments of a command.
func compiles(cmd *cobra.Command, args []string) error {
	_, operands, ok := strings.Cut(cmd.Use, "FILTER")
	if !ok || strings.HasPrefix(operands, "S") {
		return nil
	}
	switch cmd.Name() {
	case "check", "from-tcpdump": // these show wrong filters too, and tcpdump's
		return nil
	case "delay", "web": // a time, or a file, comes first
		args = args[min(1, len(args)):]
	}
	text := strings.Join(args, " ")
	if text == "" || text == "FILTER" { // the bare command
		return nil
	}
	dialect := filter.Extended
	if f := cmd.Flags().Lookup("strict"); f != nil && f.Value.String() == "true" {
		dialect = filter.Strict
	}
	layer := layersOf[cmd.Name()]
	if f := cmd.Flags().Lookup("layer"); f != nil {
		if layer, ok = layerNamed(f); !ok {
			return errors.New("--layer " + f.Value.String())
		}
	}
	_, err := filter.Compile(setFile.ReplaceAllString(text, "$1"), layer, dialect)
	return err
}

// layerNamed returns the layer that a flag names.
func layerNamed(f *pflag.Flag) (divert.Layer, bool) {
	for _, l := range allLayers {
		if word(l) == f.Value.String() {
			return l, true
		}
	}
	return 0, false
}
