package prog

import (
	"encoding/binary"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// MaxProcessName is the number of bytes of a process's name that Linux keeps: TASK_COMM_LEN (linux/sched.h) without the
// zero.
const MaxProcessName = 15

// NameValue returns the value of a process's name: its bytes, the first on top, and zeros behind them. No two names have
// consecutive values, so a set of names is one of single values. The name has at most MaxProcessName bytes.
func NameValue(name string) Value {
	var b [MaxProcessName + 1]byte
	copy(b[:MaxProcessName], name)
	return nameValue(b)
}

func nameValue(b [MaxProcessName + 1]byte) Value {
	return Value{Hi: binary.BigEndian.Uint64(b[:]), Lo: binary.BigEndian.Uint64(b[8:])}
}

// appendNameOf appends the name with a value.
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

// QuoteName returns a name in the notation of filters.
func QuoteName(name string) string { return string(appendName(nil, name)) }

// appendName appends a name in quotes. Quotes and backslashes follow a backslash; bytes that are not text are
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
