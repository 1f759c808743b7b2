package main

// style is the look of a part of the output on a terminal with colours: an ANSI sequence (ECMA-48 8.3.117, SGR).
type style struct{ begin string }

// The styles, and the sequence that ends any of them.
var (
	styleError   = style{"\x1b[1;31m"}
	styleTime    = style{"\x1b[2m"}
	styleProto   = style{"\x1b[33m"}
	styleInfo    = style{"\x1b[32m"}
	styleBytes   = style{"\x1b[36m"}
	styleBad     = style{"\x1b[31m"}
	styleHeading = style{"\x1b[1m"}
)

const styleEnd = "\x1b[0m"

// emptyScreen goes to the top of an empty screen (ECMA-48 8.3.21, 8.3.39).
const emptyScreen = "\x1b[H\x1b[2J"

// escape is the first byte of every sequence.
const escape = '\x1b'

// sequences are all sequences that the command sends to a terminal.
var sequences = []string{
	styleError.begin, styleTime.begin, styleProto.begin, styleInfo.begin, styleBytes.begin, styleBad.begin, styleHeading.begin,
	styleEnd, emptyScreen,
}
