//go:build linux

// Package links keeps the interfaces that filters name, iface == "eth0", known while these are renamed, go and come.
package links
