//go:build linux

// Package setmap puts the tables of named sets where eBPF programs can read them, and generates the code that looks a value up in
// one. The process that holds the handle writes the same memory, without a system call; see package radix.
package setmap

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/radix"
)

// Flags of maps (linux/bpf.h).
const (
	flagMappable = 1 << 10
	flagInner    = 1 << 12 // since Linux 5.10: tables of different sizes can take each other's place
)

// ErrUnsupported is the error of kernels before 5.10, whose programs cannot look values up in sets that grow.
var ErrUnsupported = fmt.Errorf("named sets in the kernel: %w (Linux 5.10 has them)", engine.ErrNotSupported)

// home is the home of a set in the kernel: a map of one map, the table in force.
type home struct{ outer *ebpf.Map }

// tableSpec describes a table.
func tableSpec(buckets int) *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "divert_set", Type: ebpf.Array, KeySize: 4, ValueSize: radix.BucketWords * 8, MaxEntries: uint32(buckets),
		Flags: flagMappable | flagInner,
	}
}

// OuterSpec describes the map that has the table in force, in its only place.
func OuterSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{
		Name: "divert_set_now", Type: ebpf.ArrayOfMaps, KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: tableSpec(1),
	}
}

// Of returns the map of a set for programs, which is the caller's to close: OuterSpec describes it. The set moves to the
// kernel when it is asked for the first time, and stays there. The error is ErrUnsupported, or that of the kernel.
func Of(s *radix.Set) (*ebpf.Map, error) {
	var made *home
	at, err := s.Move(func() (radix.Home, error) {
		outer, err := ebpf.NewMap(OuterSpec())
		if err != nil {
			return nil, explain(err)
		}
		made = &home{outer}
		return made, nil
	}, func(h radix.Home) bool { _, is := h.(*home); return is })
	if err != nil {
		if made != nil {
			made.outer.Close()
		}
		return nil, err
	}
	return at.(*home).outer.Clone()
}

// Make implements radix.Home.
func (h *home) Make(buckets int) (radix.Memory, error) {
	m, err := ebpf.NewMap(tableSpec(buckets))
	if err != nil {
		return radix.Memory{}, explain(err)
	}
	size := buckets * radix.BucketWords * 8
	page := unix.Getpagesize()
	b, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		m.Close()
		return radix.Memory{}, fmt.Errorf("mapping a set of %d bytes into memory: %w", size, err)
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), size/8)
	t := &table{m}
	runtime.AddCleanup(t, func(b []byte) { _ = unix.Munmap(b) }, b)
	return radix.Memory{Words: words, Kept: t}, nil
}

// table is the map that a table stands in. Its memory goes with its last user.
type table struct{ m *ebpf.Map }

// Publish implements radix.Home.
func (h *home) Publish(m radix.Memory) error {
	t := m.Kept.(*table)
	if err := h.outer.Put(uint32(0), t.m); err != nil {
		return fmt.Errorf("exchanging a set: %w", err)
	}
	return t.m.Close() // the outer map keeps it
}

// explain adds a remedy to an error of making a map.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.E2BIG):
		return fmt.Errorf("the kernel has no memory for a set of this size; a limit of the memory cgroup (memory.max) counts too: %w", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("making room for a set in the kernel needs CAP_BPF, and on Linux before 5.11 enough locked memory (RLIMIT_MEMLOCK): %w", err)
	}
	return fmt.Errorf("map of a set: %w", err)
}
