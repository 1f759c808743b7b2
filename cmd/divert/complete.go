package main

import (
	"net"
	"strings"

	"github.com/spf13/cobra"
)

// completeInterfaces completes the names of network interfaces.
func completeInterfaces(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	names := []string{"any"}
	if list, err := net.Interfaces(); err == nil {
		for _, i := range list {
			names = append(names, printable(i.Name))
		}
	}
	return startingWith(names, begun), cobra.ShellCompDirectiveNoFileComp
}

// startingWith returns those of words that begin as what was typed.
func startingWith(words []string, begun string) (list []string) {
	for _, w := range words {
		if strings.HasPrefix(w, begun) {
			list = append(list, w)
		}
	}
	return list
}
