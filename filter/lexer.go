package filter

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Limits of the lexer in the strict dialect. (Specification: filter-language.md 1.2, 1.3.)
const (
	maxWord   = 39       // characters of a word
	maxTokens = 1277 + 1 // tokens, with the end of the text
)

// lexer cuts a text into tokens. After the first error it yields no more: err is set and the token is tokBad.
type lexer struct {
	source
	i       int   // offset of the next token
	tokens  int   // number of tokens read
	lastEnd int   // end of the last one
	mark    token // pending byte mark of the number just read, if its kind is tokMark
	err     *Error
}

// source is a text and how to read it: its dialect and layer.
type source struct {
	text    string
	layer   packet.Layer
	dialect Dialect
}

// at makes an error about text[at:end], which is also its position.
func (s *source) at(kind ErrorKind, at, end int, msg, hint string) *Error {
	return &Error{
		Kind: kind, Pos: uint32(at), Filter: s.text, Token: s.text[at:end],
		Msg: msg, Hint: hint, at: at, end: end,
	}
}

// isSpace reports whether c is a white space character.
func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// isWordByte reports whether c is a character of words, other than the colon.
func isWordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_'
}

// punctuation are the tokens of punctuation, longer ones before their own beginnings.
var punctuation = [...]struct {
	text string
	kind tokenKind
}{
	{"(", tokOpen}, {")", tokClose}, {"[", tokOpenIndex}, {"]", tokCloseIndex},
	{"-", tokMinus}, {"?", tokQuestion}, {":", tokColon},
	{"!=", tokNe}, {"!", tokNot}, {"==", tokEq}, {"=", tokEq},
	{"<=", tokLe}, {"<", tokLt}, {">=", tokGe}, {">", tokGt},
	{"&&", tokAnd}, {"||", tokOr},
}

// extendedPunctuation are the tokens of punctuation that only the extended dialect has.
var extendedPunctuation = [...]struct {
	text byte
	kind tokenKind
}{
	{'{', tokOpenSet}, {'}', tokCloseSet}, {',', tokComma}, {'/', tokSlash},
}

// next returns the next token, tokEnd again and again at the end of the text.
func (l *lexer) next() token {
	if l.mark.kind == tokMark {
		t := l.mark
		l.mark = token{}
		return l.count(t)
	}
	for l.err == nil {
		if l.dialect == Strict && l.tokens == maxTokens {
			return l.tooMany()
		}
		for l.i < len(l.text) && isSpace(l.text[l.i]) {
			l.i++
		}
		if l.i == len(l.text) {
			return token{kind: tokEnd, pos: l.i, end: l.i}
		}
		if t := l.read(); t.kind != tokEnd {
			return l.count(t)
		} // else the mark is a lone b
	}
	return l.bad(l.err)
}

// count returns t, or an error if there are too many tokens.
func (l *lexer) count(t token) token {
	if l.err != nil {
		return t
	}
	if l.dialect == Strict && l.tokens == maxTokens {
		return l.tooMany()
	}
	l.tokens++
	l.lastEnd = l.i
	return t
}

func (l *lexer) tooMany() token {
	err := l.at(ErrTooLong, l.lastEnd, l.lastEnd, "the filter has more than 1277 words and symbols", "")
	return l.bad(err)
}

func (l *lexer) bad(err *Error) token {
	l.err = err
	return token{kind: tokBad, pos: err.at, end: err.end}
}

// read reads the token at l.i, which is not white space. It returns tokEnd for a word to ignore.
func (l *lexer) read() token {
	rest := l.text[l.i:]
	if isWordByte(rest[0]) || strings.HasPrefix(rest, "::") {
		return l.readWord()
	}
	for _, p := range punctuation {
		if strings.HasPrefix(rest, p.text) {
			return l.symbol(p.kind, len(p.text))
		}
	}
	if l.dialect == Extended {
		for _, p := range extendedPunctuation {
			if rest[0] == p.text {
				return l.symbol(p.kind, 1)
			}
		}
		switch rest[0] {
		case '@':
			return l.readName()
		case '"':
			return l.readText()
		}
	}
	return l.bad(l.illegal())
}

func (l *lexer) symbol(kind tokenKind, length int) token {
	l.i += length
	return token{kind: kind, pos: l.i - length, end: l.i}
}

// readName reads the name of a set, with its @.
func (l *lexer) readName() token {
	length := 1 + nameLength(l.text[l.i+1:])
	if length == 1 {
		return l.bad(l.at(ErrBadToken, l.i, l.i+1, "the name of a set is missing behind \"@\"", hintNamed))
	}
	if length > 1+MaxName {
		return l.bad(l.at(ErrBadToken, l.i, l.i+length, "the name of the set is too long",
			fmt.Sprintf("it may have %d characters", MaxName)))
	}
	return l.symbol(tokNamed, length)
}

// readText reads the name in quotes at l.i. A backslash precedes a quote, a backslash, or x and a byte in two hexadecimal
// digits.
func (l *lexer) readText() token {
	start := l.i
	var text []byte
	for i := start + 1; i < len(l.text); i++ {
		switch c := l.text[i]; c {
		case '"':
			l.i = i + 1
			return token{kind: tokText, text: string(text), pos: start, end: i + 1}
		case '\\':
			c, n := unescape(l.text[i+1:])
			if n == 0 {
				return l.bad(l.at(ErrBadToken, i, min(i+2, len(l.text)), "a backslash in a name stands before a quote, a backslash or x",
					`as in \", \\ or \x1b`))
			}
			text = append(text, c)
			i += n
		default:
			text = append(text, c)
		}
	}
	return l.bad(l.at(ErrBadToken, start, len(l.text), "the name is not closed", `a name stands between quotes: iface == "eth0"`))
}

// unescape returns the byte that an escape sequence stands for, and the length of the sequence behind the backslash, 0 if
// it is not one.
func unescape(s string) (c byte, n int) {
	switch {
	case s == "":
	case s[0] == '"' || s[0] == '\\':
		return s[0], 1
	case s[0] == 'x' && len(s) >= 3:
		if v, err := strconv.ParseUint(s[1:3], 16, 8); err == nil {
			return byte(v), 3
		}
	}
	return 0, 0
}

// readWord reads the word at l.i.
func (l *lexer) readWord() token {
	start, end := l.i, l.i
	for end < len(l.text) && (isWordByte(l.text[end]) || l.text[end] == ':') {
		end++
		if l.dialect == Strict && end-start > maxWord {
			return l.bad(l.longWord(start))
		}
	}
	cut := false
	if l.text[end-1] == ':' && l.text[end-2] != ':' { // of two colons only the first starts a word
		end, cut = end-1, true
	}
	l.i = end
	t, err := l.classify(start, end)
	if err == nil {
		return t
	}
	if l.dialect == Extended {
		if t, ok := l.split(start, end); ok {
			l.i = t.end
			return t
		}
	} else if cut {
		err.Pos-- // as in the original; wraps at the start of the text
	}
	return l.bad(err)
}

// classify interprets the word text[start:end]. (Specification: filter-language.md 1.2.)
func (l *lexer) classify(start, end int) (token, *Error) {
	s := l.text[start:end]
	if w, reserved := words[s]; reserved && (w.kind != tokIn || l.dialect == Extended) {
		return l.reserved(w, start, end)
	}
	if s == "b" {
		if l.dialect == Extended {
			return token{}, l.strayMark(start, end)
		}
		return token{kind: tokEnd}, nil
	}
	v, form, mark, ok := readLiteral(s)
	if !ok {
		return token{}, l.unknownWord(start, end)
	}
	if l.dialect == Extended {
		if why := accident(s, form); why != "" {
			return token{}, l.at(ErrBadToken, start, end, "malformed number "+quote(s), why)
		}
	}
	t := token{kind: tokNumber, form: form, value: v, pos: start, end: end}
	if mark {
		// The original leaves the position of the mark undefined; the number's is the
		// specification's recommendation.
		l.mark = token{kind: tokMark, pos: start, end: end}
	}
	return t, nil
}

// known reports whether s is a reserved word or a literal.
func (l *lexer) known(s string) bool {
	if _, reserved := words[s]; reserved {
		return true
	}
	_, _, _, ok := readLiteral(s)
	return ok
}

// reserved returns the token of a reserved word.
func (l *lexer) reserved(w word, start, end int) (token, *Error) {
	t := token{kind: w.kind, pos: start, end: end}
	switch w.kind {
	case tokField:
		if t.field = w.field; !w.constant() && !w.field.Info().In(l.dialect == Strict).Has(l.layer) {
			msg, hint := foreignField(w.field, l.layer, l.dialect)
			return token{}, l.at(ErrBadTokenForLayer, start, end, msg, hint)
		}
		if l.dialect == Extended {
			t.field = extendedField(t.field, l.layer)
		}
	case tokMacro:
		if v, ok := macroValue(w, l.layer); ok {
			t.kind, t.form, t.value = tokNumber, formMacro, prog.Value{Lo: v}
		}
	}
	return t, nil
}

// constant reports whether the word is true or false, which exist on every layer.
func (w word) constant() bool {
	return w.kind == tokField && (w.field == prog.FieldTrue || w.field == prog.FieldFalse)
}

// split returns the beginning of a word that swallowed a colon, as in (tcp? udp:icmp). The part before the colon must be
// a token. Behind a number there must be a field, so that misspelt addresses stay whole. Extended dialect only.
func (l *lexer) split(start, end int) (token, bool) {
	const longest = 128 // of the text before the colon; keeps hostile texts cheap
	for at := min(end-1, start+longest); at > start; at-- {
		if l.text[at] != ':' {
			continue
		}
		if !l.known(l.text[start:at]) {
			continue
		}
		t, err := l.classify(start, at)
		if err != nil {
			continue
		}
		if t.kind != tokNumber {
			return t, true
		}
		next, _, _ := strings.Cut(l.text[at+1:end], ":")
		if w, ok := words[next]; ok && (w.kind == tokField || w.kind == tokNot) {
			return t, true
		}
		l.mark = token{} // the mark of a number that was not taken
	}
	return token{}, false
}
