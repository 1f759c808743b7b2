//go:build !linux

package main

import "net"

// localInterfaces returns the network interfaces.
func localInterfaces() ([]netInterface, error) {
	all, err := net.Interfaces()
	list := make([]netInterface, len(all))
	for i, l := range all {
		list[i] = netInterface{l.Index, []string{l.Name}}
	}
	return list, err
}
