package main

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
)

// entry is a file for an archive.
type entry struct {
	file string // on this machine
	name string // in the archive, below its folder
	mode int64
}

// tarball writes a .tar.gz with one folder.
func (r *release) tarball(name string, entries []entry) error {
	return r.file(name+".tar.gz", func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
		if err != nil {
			return err
		}
		t := tar.NewWriter(z)
		for _, e := range entries {
			b, err := os.ReadFile(e.file)
			if err != nil {
				return err
			}
			h := &tar.Header{Name: path.Join(name, e.name), Mode: e.mode, Size: int64(len(b)), ModTime: r.time, Format: tar.FormatUSTAR}
			if err := t.WriteHeader(h); err != nil {
				return err
			}
			if _, err := t.Write(b); err != nil {
				return err
			}
		}
		return errors.Join(t.Close(), z.Close())
	})
}

// zip writes a .zip with one folder.
func (r *release) zip(name string, entries []entry) error {
	return r.file(name+".zip", func(w io.Writer) error {
		z := zip.NewWriter(w)
		for _, e := range entries {
			b, err := os.ReadFile(e.file)
			if err != nil {
				return err
			}
			h := &zip.FileHeader{Name: path.Join(name, e.name), Method: zip.Deflate, Modified: r.time}
			h.SetMode(os.FileMode(e.mode))
			f, err := z.CreateHeader(h)
			if err != nil {
				return err
			}
			if _, err := f.Write(b); err != nil {
				return err
			}
		}
		return z.Close()
	})
}

// file writes a file of the release.
func (r *release) file(name string, write func(io.Writer) error) error {
	f, err := os.Create(filepath.Join(r.out, name))
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// checksums writes SHA256SUMS, for sha256sum -c.
func (r *release) checksums() error {
	files, err := os.ReadDir(r.out) // sorted by name
	if err != nil {
		return err
	}
	return r.file("SHA256SUMS", func(w io.Writer) error {
		for _, file := range files {
			b, err := os.ReadFile(filepath.Join(r.out, file.Name()))
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(w, "%x  %s\n", sha256.Sum256(b), file.Name()); err != nil {
				return err
			}
		}
		return nil
	})
}
