package main

const hexDigits = "0123456789abcdef"

// appendDump appends bytes as lines of an offset, 16 bytes in hexadecimal, and the same in ASCII, or as ASCII only.
func appendDump(b, data []byte, mode bytesMode) []byte {
	if mode == bytesASCII {
		return appendASCII(b, data)
	}
	for at := 0; at < len(data); at += 16 {
		row := data[at:min(at+16, len(data))]
		b = append(b, '\t')
		b = appendHex(b, at, 4)
		b = append(b, ": "...)
		for i := range 16 {
			if i%2 == 0 {
				b = append(b, ' ')
			}
			if i < len(row) {
				b = append(b, hexDigits[row[i]>>4], hexDigits[row[i]&15])
			} else {
				b = append(b, "  "...)
			}
		}
		if mode == bytesBoth {
			b = append(b, "  "...)
			for _, c := range row {
				b = append(b, shown(c))
			}
		}
		for b[len(b)-1] == ' ' && mode == bytesHex {
			b = b[:len(b)-1]
		}
		b = append(b, '\n')
	}
	return b
}

// appendASCII appends bytes as text: line feeds and tabs unchanged, other control characters as dots. It indents each
// line, so that a packet's contents cannot look like another packet.
func appendASCII(b, data []byte) []byte {
	b = append(b, '\t')
	for i, c := range data {
		switch {
		case c == '\t':
		case c == '\n':
			b = append(b, "\n\t"...)
			continue
		case c == '\r' && i+1 < len(data) && data[i+1] == '\n':
			continue
		default:
			c = shown(c)
		}
		b = append(b, c)
	}
	return append(b, '\n')
}

// shown returns a byte as ASCII, or a dot if it is not printable.
func shown(c byte) byte {
	if c < ' ' || c > '~' {
		return '.'
	}
	return c
}
