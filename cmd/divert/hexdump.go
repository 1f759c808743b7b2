package main

const hexDigits = "0123456789abcdef"

// appendDump appends bytes as lines of an offset, 16 bytes in hexadecimal, and the same in ASCII.
func appendDump(b, data []byte) []byte {
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
		b = append(b, "  "...)
		for _, c := range row {
			if c < ' ' || c > '~' {
				c = '.'
			}
			b = append(b, c)
		}
		b = append(b, '\n')
	}
	return b
}
