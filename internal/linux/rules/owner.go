//go:build linux

package rules

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/google/nftables/userdata"

	"github.com/opendivert/divert/internal/linux/cursor"
)

// Owner is the handle that a rule belongs to. It stands in each of its rules as a comment, so that `nft list ruleset` shows it
// too. Any program that may change rules can write such a comment: it is a claim, to be checked against the kernel by token and
// process.
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

	Filter  string // the filter as REFLECT reports it; in rules of its own, see filterParts
	Process int    // the process as the caller's pid namespace numbers it, 0 if that is not certain; see identify
}

// The comment's words, each followed by a number: hexadecimal for the handle, decimal for the others.
const (
	ownerPrefix   = "divert handle="
	openingSuffix = " opening"
)

var ownerWords = [...]string{" pid=", " opened=", " key=", " priority=", " layer=", " flags=", " queue=", " port="}

// comment returns the owner as the comment of a rule.
func (o Owner) comment() string {
	b := strconv.AppendUint(append(make([]byte, 0, maxUserData), ownerPrefix...), o.ID, 16)
	b = strconv.AppendInt(append(b, ownerWords[0]...), int64(o.PID), 10)
	b = strconv.AppendInt(append(b, ownerWords[1]...), o.Opened, 10)
	b = strconv.AppendUint(append(b, ownerWords[2]...), uint64(o.Key), 10)
	b = strconv.AppendInt(append(b, ownerWords[3]...), int64(o.Priority), 10)
	b = strconv.AppendUint(append(b, ownerWords[4]...), uint64(o.Layer), 10)
	b = strconv.AppendUint(append(b, ownerWords[5]...), o.Flags, 10)
	b = strconv.AppendUint(append(b, ownerWords[6]...), uint64(o.Queue), 10)
	b = strconv.AppendUint(append(b, ownerWords[7]...), uint64(o.Port), 10)
	if o.Opening {
		b = append(b, openingSuffix...)
	}
	return string(b)
}

// userData returns the owner as userdata of a rule.
func (o Owner) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, o.comment())
}

// parseOwner reads the userdata of a rule. Rules that belong to no handle, and userdata that no handle would write, have no
// owner.
func parseOwner(data []byte) (Owner, bool) {
	text, ok := comment(data)
	if !ok {
		return Owner{}, false
	}
	rest, ok := strings.CutPrefix(text, ownerPrefix)
	if !ok {
		return Owner{}, false
	}
	var o Owner
	rest, o.Opening = strings.CutSuffix(rest, openingSuffix)
	var numbers [1 + len(ownerWords)]string
	for i, word := range ownerWords {
		if numbers[i], rest, ok = strings.Cut(rest, word); !ok {
			return Owner{}, false
		}
	}
	numbers[len(ownerWords)] = rest
	// A text that is not a number, or too great a one, differs when it is written again.
	o.ID, _ = strconv.ParseUint(numbers[0], 16, 64)
	o.PID, _ = strconv.Atoi(numbers[1])
	o.Opened, _ = strconv.ParseInt(numbers[2], 10, 64)
	o.Key = cursor.Key(unsigned(numbers[3], 32))
	priority, _ := strconv.ParseInt(numbers[4], 10, 16)
	o.Priority = int16(priority)
	o.Layer = uint8(unsigned(numbers[5], 8))
	o.Flags = unsigned(numbers[6], 64)
	o.Queue = uint16(unsigned(numbers[7], 16))
	o.Port = uint32(unsigned(numbers[8], 32))
	if o.comment() != text || o.Key != cursor.NewKey(o.Priority, o.Key.Sub()) {
		return Owner{}, false
	}
	return o, true
}

// unsigned reads a number. The result is arbitrary if the text is none.
func unsigned(text string, bits int) uint64 {
	n, _ := strconv.ParseUint(text, 10, bits)
	return n
}

// comment returns the comment in userdata: entries of type, length and value, where a text ends with a
// zero byte (libnftnl, udata.h). Other programs' rules may hold anything.
func comment(data []byte) (text string, ok bool) {
	value := entry(data, userdata.TypeComment)
	if value == nil {
		return "", false
	}
	value, _ = bytes.CutSuffix(value, []byte{0})
	return string(value), true
}
