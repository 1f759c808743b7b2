//go:build linux

package rules

import (
	"errors"
	"fmt"
	"strings"
)

// ErrForeign means that the table is not one that the package has made, or that another program has changed it so
// that handles cannot work in it.
var ErrForeign = errors.New("another program has made the nftables table inet " + tableName + ", or changed it")

// usable reports why handles cannot work in the table, and what to do about it.
func (t *tx) usable() error {
	var wrong []string
	if t.table.flags&flagDormant != 0 {
		wrong = append(wrong, `its flag "dormant" switches off every rule in it`)
	}
	if t.table.flags&flagOwner != 0 {
		wrong = append(wrong, fmt.Sprintf("it belongs to the netlink socket %d of a process (see /proc/net/netlink) and nobody else may change it", t.table.owner))
	}
	wrong = append(wrong, t.foreign...)
	if len(wrong) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s; rename that program's table, or remove it with `nft delete table inet %s`, which ends the handles that are open",
		ErrForeign, strings.Join(wrong, "; "), tableName)
}

// differs says how a chain differs from the package's of the same name, "" if it does not.
func (c Chain) differs(s chainState) string {
	d := c.definition()
	switch {
	case d.Hooknum == nil && s.hooked:
		return fmt.Sprintf("its chain %q hangs at hook %d, and divert's at none", s.name, s.hook)
	case d.Hooknum == nil:
		return ""
	case !s.hooked:
		return fmt.Sprintf("its chain %q hangs at no hook, and divert's at hook %d with priority %d", s.name, *d.Hooknum, *d.Priority)
	case s.hook != uint32(*d.Hooknum) || s.priority != int32(*d.Priority) || s.kind != string(d.Type):
		return fmt.Sprintf("its chain %q is of type %s, at hook %d with priority %d, and divert's of type %s, at hook %d with priority %d",
			s.name, s.kind, s.hook, s.priority, d.Type, *d.Hooknum, *d.Priority)
	case s.policy != uint32(*d.Policy):
		return fmt.Sprintf("its chain %q drops packets by its policy", s.name)
	}
	return ""
}
