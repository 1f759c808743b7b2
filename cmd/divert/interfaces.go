package main

import (
	"slices"
	"strconv"
)

// netInterface is a network interface.
type netInterface struct {
	index int
	names []string // its own, and the alternative ones (altname in ip-link(8))
}

// interfaceNamed returns the index of the interface with a name, 0 if there is none.
func interfaceNamed(name string, all []netInterface) int {
	for _, i := range all {
		if slices.Contains(i.names, name) {
			return i.index
		}
	}
	return 0
}

// interfaceIndex returns the index of an interface given by name or by index, and whether it was a name.
func interfaceIndex(name string) (index int, named bool, err error) {
	all, err := localInterfaces()
	if err != nil {
		return 0, false, err
	}
	if index := interfaceNamed(name, all); index != 0 {
		return index, true, nil
	}
	text := ""
	number, err := strconv.Atoi(name)
	for _, i := range all {
		if err == nil && i.index == number {
			return number, false, nil
		}
		for _, n := range i.names {
			text += ", " + n
		}
	}
	return 0, false, usagef("--interface %s: there is no such network interface; there are any%s", printable(name), printable(text))
}

// localInterface returns the index of this system's interface with a name, 0 if there is none.
func localInterface(name string) uint32 {
	all, _ := localInterfaces()
	return uint32(interfaceNamed(name, all))
}
