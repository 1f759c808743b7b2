package main

import "github.com/opendivert/divert/internal/linux/links"

// localInterfaces returns the network interfaces.
func localInterfaces() ([]netInterface, error) {
	all, err := links.All()
	list := make([]netInterface, len(all))
	for i, l := range all {
		list[i] = netInterface{int(l.Index), append([]string{l.Name}, l.Alternatives...)}
	}
	return list, err
}
