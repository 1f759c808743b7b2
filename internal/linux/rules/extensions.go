//go:build linux

package rules

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// The request for the newest revision of an extension of x_tables (linux/netfilter/nf_tables_compat.h).
const (
	compatGet    = 0 // NFNL_MSG_COMPAT_GET
	compatName   = 1 // NFTA_COMPAT_NAME
	compatRev    = 2 // NFTA_COMPAT_REV
	compatType   = 3 // NFTA_COMPAT_TYPE
	compatMatch  = 0
	compatTarget = 1

	subsystemCompat = 11 // NFNL_SUBSYS_NFT_COMPAT
)

// extension is an extension of x_tables that rules are made with.
type extension struct {
	name     string
	kind     uint32
	revision uint32
}

var extensions = []extension{{matchName, compatMatch, matchRevision}, {queueName, compatTarget, queueRevision}}

// LoadExtensions has the kernel load the modules of the extensions, in the namespace of the calling thread. For rules of the
// family inet it does not do so by itself: it builds a module's name from a prefix for the family, and has none for this one
// (net/netfilter/x_tables.c, xt_request_find_match). A request for the revision of an extension for IPv4 loads the module.
func LoadExtensions() error {
	c, err := nfnl.Dial(0)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, e := range extensions {
		m := nfnl.NewMessage(nfnl.Type(subsystemCompat, compatGet), 0).Family(unix.AF_INET).
			Attr(compatName, append([]byte(e.name), 0)...).Attr32(compatRev, e.revision).Attr32(compatType, e.kind)
		if err := c.Request(m); err != nil {
			return fmt.Errorf("ask for revision %d of the extension %s: %w", e.revision, e.name, err)
		}
	}
	return nil
}
