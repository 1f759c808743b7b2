// Command site makes a static web site of the manual, the files docs/*.md, as a book with a table of contents and a
// search. The site needs no server and also works from a folder. docs/README.md is the cover; its lists are the only
// table of contents and decide the order.
//
//	go run ./docs/site OUT      writes the site to the folder OUT
//	go run ./docs/site -update  redraws the pictures and rewrites the generated pages of docs/
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

// run executes the arguments and returns the exit status.
func run(args []string, errout io.Writer) int {
	flags := flag.NewFlagSet("site", flag.ContinueOnError)
	flags.SetOutput(errout)
	update := flags.Bool("update", false, "draw the pictures and write the generated pages of docs/ anew")
	flags.Usage = func() {
		fmt.Fprint(errout, "usage: go run ./docs/site OUT\n       go run ./docs/site -update\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if *update != (flags.NArg() == 0) || flags.NArg() > 1 {
		flags.Usage()
		return 2
	}
	root, err := repository()
	if err == nil && *update {
		err = writeGenerated(root)
	} else if err == nil {
		if err = makeSite(root, flags.Arg(0)); err == nil {
			err = writeCompiler(root, flags.Arg(0))
		}
	}
	if err != nil {
		fmt.Fprintf(errout, "site: %v\n", err)
		return 1
	}
	return 0
}

// repository returns the folder of the module around the working directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "docs", cover)); err == nil {
			return at, nil
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no docs/%s in %s or above it: run this in a clone of the repository", cover, dir)
		}
	}
}
