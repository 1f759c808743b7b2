package divert

import (
	"fmt"
	"strings"
)

// flagNames names the flags, in the order they print.
var flagNames = [...]struct {
	flag Flag
	name string
}{
	{Sniff, "SNIFF"}, {Drop, "DROP"}, {RecvOnly, "RECV_ONLY"}, {SendOnly, "SEND_ONLY"},
	{NoInstall, "NO_INSTALL"}, {Fragments, "FRAGMENTS"},
}

// String returns the flags' names joined by "|", "0" if there are none.
func (f Flag) String() string {
	var names []string
	for _, n := range flagNames {
		if f&n.flag != 0 {
			names = append(names, n.name)
			f &^= n.flag
		}
	}
	if f != 0 {
		names = append(names, fmt.Sprintf("%#x", uint64(f)))
	}
	if names == nil {
		return "0"
	}
	return strings.Join(names, "|")
}
