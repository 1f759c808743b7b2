//go:build linux

package rules

import (
	"bytes"
	"fmt"

	"github.com/google/nftables/userdata"

	"github.com/opendivert/divert/internal/linux/cursor"
)

// Owner is the handle that a rule belongs to. It stands in each of its rules as a comment, so that
// `nft list ruleset` shows it too. Whoever may change rules can write such a comment: it is a claim, which token and
// process check against what the kernel says.
type Owner struct {
	ID       uint64 // random, names the handle
	PID      int    // in the pid namespace of the process itself
	Opened   int64  // time of opening, ns of the monotonic clock
	Key      cursor.Key
	Priority int16
	Layer    uint8
	Flags    uint64
	Queue    uint16 // of the token
	Port     uint32 // of the token's socket
	Opening  bool   // the key is reserved, the rules are still to come

	Filter  string // what REFLECT tells of the handle's filter; in rules of its own, see filterParts
	Process int    // the process as the caller's pid namespace numbers it, 0 if it cannot be told for certain; see identify
}

const (
	ownerFormat   = "divert handle=%x pid=%d opened=%d key=%d priority=%d layer=%d flags=%d queue=%d port=%d"
	openingSuffix = " opening"
)

// comment returns the owner as the comment of a rule.
func (o Owner) comment() string {
	text := fmt.Sprintf(ownerFormat, o.ID, o.PID, o.Opened, o.Key, o.Priority, o.Layer, o.Flags, o.Queue, o.Port)
	if o.Opening {
		text += openingSuffix
	}
	return text
}

// userData returns the owner as userdata of a rule.
func (o Owner) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, o.comment())
}

// parseOwner reads the userdata of a rule. Rules that belong to no handle, and what no handle would
// write, have no owner.
func parseOwner(data []byte) (Owner, bool) {
	text, ok := comment(data)
	if !ok {
		return Owner{}, false
	}
	var o Owner
	_, err := fmt.Sscanf(text, ownerFormat, &o.ID, &o.PID, &o.Opened, &o.Key, &o.Priority, &o.Layer, &o.Flags, &o.Queue, &o.Port)
	o.Opening = len(text) > len(openingSuffix) && text[len(text)-len(openingSuffix):] == openingSuffix
	if err != nil || o.comment() != text || o.Key != cursor.NewKey(o.Priority, o.Key.Sub()) {
		return Owner{}, false
	}
	return o, true
}

// comment returns the comment in userdata: entries of type, length and value, where a text ends with a
// zero byte (libnftnl, udata.h). Other programs' rules hold what they like.
func comment(data []byte) (text string, ok bool) {
	value := entry(data, userdata.TypeComment)
	if value == nil {
		return "", false
	}
	value, _ = bytes.CutSuffix(value, []byte{0})
	return string(value), true
}
