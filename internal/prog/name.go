package prog

import (
	"encoding/binary"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// MaxProcessName is how many bytes of a process's name Linux knows: TASK_COMM_LEN (linux/sched.h) without the zero.
const MaxProcessName = 15

// NameValue returns the value that a name of a process has: its bytes, the first on top, and zeros behind them. No two
// names have values in a row, so a set of names is one of single values. The name has MaxProcessName bytes at most.
func NameValue(name string) Value {
	var b [MaxProcessName + 1]byte
	copy(b[:MaxProcessName], name)
	return nameValue(b)
}

func nameValue(b [MaxProcessName + 1]byte) Value {
	return Value{Hi: binary.BigEndian.Uint64(b[:]), Lo: binary.BigEndian.Uint64(b[8:])}
}

// appendNameOf appends the name that has a value.
func appendNameOf(b []byte, v Value) []byte {
	var name [MaxProcessName + 1]byte
	binary.BigEndian.PutUint64(name[:], v.Hi)
	binary.BigEndian.PutUint64(name[8:], v.Lo)
	n := len(name)
	for n > 0 && name[n-1] == 0 {
		n--
	}
	return appendName(b, string(name[:n]))
}

// QuoteName returns a name as filters write it.
func QuoteName(name string) string { return string(appendName(nil, name)) }

// appendName appends a name in quotes. Quotes and backslashes have a backslash in front; bytes that are not text are
// hexadecimal, as \x1b.
func appendName(b []byte, name string) []byte {
	b = append(b, '"')
	for len(name) > 0 {
		r, n := utf8.DecodeRuneInString(name)
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', name[0])
		case r == utf8.RuneError && n == 1 || !unicode.IsPrint(r):
			for _, c := range []byte(name[:n]) {
				b = append(b, '\\', 'x')
				if c < 0x10 {
					b = append(b, '0')
				}
				b = strconv.AppendUint(b, uint64(c), 16)
			}
		default:
			b = append(b, name[:n]...)
		}
		name = name[n:]
	}
	return append(b, '"')
}
