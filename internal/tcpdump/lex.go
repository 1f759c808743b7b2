package tcpdump

import "strings"

// kind is the kind of a token.
type kind uint8

const (
	end    kind = iota
	word        // a name, number, address or port range
	symbol      // an operator, a parenthesis or a bracket
)

// token is a word or a symbol of a filter.
type token struct {
	kind kind
	text string
	at   int  // byte offset in the filter
	raw  bool // escaped by a backslash: a name, never a keyword
}

// symbols are the operators, longer ones before their own beginnings.
var symbols = []string{"&&", "||", "==", "!=", "<=", ">=", "<<", ">>", "(", ")", "[", "]", ":", "!", "=", "<", ">", "+", "-", "*", "/", "%", "&", "|", "^"}

// lex returns the tokens of a filter, and one of kind end behind them.
func lex(text string) ([]token, error) {
	var ts []token
	depth := 0 // of brackets, in which a colon separates
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
			continue
		case c == '\\' && i+1 < len(text) && isWord(text[i+1]):
			n := wordLength(text[i+1:], true)
			ts = append(ts, token{word, text[i+1 : i+1+n], i, true})
			i += 1 + n
			continue
		case isWord(c), c == ':' && depth == 0:
			n := wordLength(text[i:], depth > 0)
			if n > 0 {
				ts = append(ts, token{word, text[i : i+n], i, false})
				i += n
				continue
			}
		}
		s := symbolAt(text[i:])
		if s == "" {
			return nil, &Error{Text: text, At: i, Len: 1, Message: "unexpected character", Syntax: true}
		}
		switch s {
		case "[":
			depth++
		case "]":
			depth--
		}
		ts = append(ts, token{symbol, s, i, false})
		i += len(s)
	}
	return append(ts, token{kind: end, at: len(text)}), nil
}

func isWord(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// wordLength returns the length of the word at the start of s. Outside brackets a word may be an IPv6 address.
func wordLength(s string, bracketed bool) int {
	if !bracketed {
		n := 0
		for n < len(s) && (isHex(s[n]) || s[n] == ':' || s[n] == '.') {
			n++
		}
		if strings.Count(s[:n], ":") >= 2 && (n == len(s) || !isWord(s[n])) {
			return n
		}
	}
	n := 0
	for n < len(s) && (isWord(s[n]) || n > 0 && (s[n] == '-' || s[n] == '_' || s[n] == '.')) {
		n++
	}
	for n > 0 && (s[n-1] == '-' || s[n-1] == '_') {
		n--
	}
	return n
}

func symbolAt(s string) string {
	for _, op := range symbols {
		if strings.HasPrefix(s, op) {
			return op
		}
	}
	return ""
}
