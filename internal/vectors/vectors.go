// Package vectors reads the test vectors: recorded answers that the packages must reproduce. The project's own copy is in
// testdata/vectors; the environment variable DIVERT_VECTORS names another folder of the same kinds. Only tests import
// this package.
package vectors

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
)

// Env is the environment variable with the folder to read instead of the project's own.
const Env = "DIVERT_VECTORS"

// maxReported is the number of failed rows reported one by one, and maxRow the length reported of each, in bytes.
const (
	maxReported = 20
	maxRow      = 500
)

// Kinds are the kinds of vectors; the rows of a kind are the lines of KIND.jsonl or KIND.jsonl.gz.
var Kinds = []string{
	"eval", "compile", "format", "objects", "hash", "checksum", "ttl", "parse", "addresses",
}

// Bytes is a byte string written in hex. An absent argument ("") is nil.
type Bytes []byte

// UnmarshalText sets b from hex digits of either case.
func (b *Bytes) UnmarshalText(text []byte) error {
	*b = nil
	if len(text) == 0 {
		return nil
	}
	*b = make([]byte, hex.DecodedLen(len(text)))
	_, err := hex.Decode(*b, text)
	return err
}

// Layer is the number of a layer, which rows name. An unknown name is an error.
type Layer uint8

// layerNames are the names by number.
var layerNames = []string{"NETWORK", "NETWORK_FORWARD", "FLOW", "SOCKET", "REFLECT"}

// UnmarshalText sets l from a name.
func (l *Layer) UnmarshalText(text []byte) error {
	number := slices.Index(layerNames, string(text))
	if number < 0 {
		return fmt.Errorf("unknown layer %q", text)
	}
	*l = Layer(number)
	return nil
}

// Run reads all rows of a kind and calls check for each; T is a struct with the JSON fields of a row. It reports the
// first 20 rows for which check returns an error or panics, with their line number, and prints a line "KIND: N passed, M
// failed". A kind without rows is a failure. If the folder of DIVERT_VECTORS lacks the kind, the test is skipped; if it
// has no kind at all, that is a failure.
//
// The rows are read one after the other; check may keep its argument.
func Run[T any](t *testing.T, kind string, check func(row T) error) {
	t.Helper()
	run(t, kind, check)
}

// reporter is the part of testing.T that run needs. Unlike testing.T's, the methods Fatalf and Skipf
// of another reporter may return.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

func run[T any](t reporter, kind string, check func(row T) error) {
	t.Helper()
	file, err := open(kind)
	if errors.Is(err, errNoKind) {
		t.Skipf("%v", err)
		return
	}
	if err != nil {
		t.Fatalf("vectors: %v", err)
		return
	}
	defer file.Close()

	var passed, failed int
	err = lines(file, func(number int, line []byte) {
		var row T
		err := json.Unmarshal(line, &row)
		if err == nil {
			err = safely(check, row)
		}
		if err == nil {
			passed++
			return
		}
		failed++
		if failed <= maxReported {
			t.Errorf("%s line %d: %v\n\t%s", kind, number, err, clipped(line))
		}
	})
	fmt.Printf("%s: %d passed, %d failed\n", kind, passed, failed)
	if err != nil {
		t.Fatalf("vectors: %s: %v", kind, err)
		return
	}
	if failed > maxReported {
		t.Errorf("%s: %d more rows failed", kind, failed-maxReported)
	}
	if passed+failed == 0 {
		t.Errorf("%s: no rows", kind)
	}
}

// safely calls check. A panic becomes an error, so that the other rows are still checked.
func safely[T any](check func(row T) error, row T) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		}
	}()
	return check(row)
}

// clipped returns the beginning of a long row, with its length, and any other row unchanged.
func clipped(row []byte) string {
	if len(row) <= maxRow {
		return string(row)
	}
	return fmt.Sprintf("%s… (%d bytes)", bytes.ToValidUTF8(row[:maxRow], nil), len(row))
}

// lines calls f for each line of r that is not empty, with its number (from 1).
func lines(r io.Reader, f func(number int, line []byte)) error {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 16<<20) // a row holds a packet of up to 64 KiB twice, in hex
	for number := 1; scanner.Scan(); number++ {
		if len(scanner.Bytes()) > 0 {
			f(number, scanner.Bytes())
		}
	}
	return scanner.Err()
}

// errNoKind means that the folder of DIVERT_VECTORS lacks the kind, but has others.
var errNoKind = errors.New("no such vectors")

// open opens the file of a kind, uncompressed or not.
func open(kind string) (io.ReadCloser, error) {
	if !slices.Contains(Kinds, kind) {
		return nil, fmt.Errorf("unknown kind %q", kind)
	}
	dir := os.Getenv(Env)
	if dir == "" {
		root, err := moduleRoot()
		if err != nil {
			return nil, err
		}
		return openIn(filepath.Join(root, "testdata", "vectors"), kind)
	}
	file, err := openIn(dir, kind)
	if errors.Is(err, fs.ErrNotExist) && slices.ContainsFunc(Kinds, func(kind string) bool { return has(dir, kind) }) {
		return nil, fmt.Errorf("%w: no %s.jsonl in the folder of %s", errNoKind, kind, Env)
	}
	return file, err
}

// has reports whether dir holds the file of a kind.
func has(dir, kind string) bool {
	file, err := openIn(dir, kind)
	if err != nil {
		return false
	}
	file.Close()
	return true
}

func openIn(dir, kind string) (io.ReadCloser, error) {
	path := filepath.Join(dir, kind+".jsonl")
	file, err := os.Open(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	file, err = os.Open(path + ".gz")
	if err != nil {
		return nil, err
	}
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s.gz: %w", path, err)
	}
	return gzipFile{unzipped, file}, nil
}

// gzipFile reads a compressed file; closing it closes the file.
type gzipFile struct {
	*gzip.Reader
	file *os.File
}

func (g gzipFile) Close() error { return errors.Join(g.Reader.Close(), g.file.Close()) }

// moduleRoot finds the folder of go.mod. Tests run in the folder of their package, below it.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = parent
	}
}
