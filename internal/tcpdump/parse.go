package tcpdump

import (
	"fmt"
	"strconv"
	"strings"
)

// Error is an error about a part of a filter, with its place.
type Error struct {
	Text    string // the filter
	At, Len int    // the place in Text, in bytes
	Message string
	Syntax  bool // the text is not a filter of tcpdump; otherwise it has no counterpart
}

func (e *Error) Error() string {
	if e.Len == 0 || e.At+e.Len > len(e.Text) {
		return e.Message
	}
	return fmt.Sprintf("%s: %s", e.Text[e.At:e.At+e.Len], e.Message)
}

// node is a part of a filter: *logic, *negation, *primitive or *relation.
type node any

type logic struct {
	and  bool
	a, b node
}

type negation struct{ a node }

// primitive is qualifiers and a value, as in "src host 10.0.0.1", or a keyword that stands alone, as in "tcp".
type primitive struct {
	proto string // "" or ip, ip6, tcp, udp, icmp, icmp6, ether, …
	dir   string // "", "src", "dst", "src and dst"
	typ   string // "", "host", "net", "port", "portrange", "proto", "protochain", or a keyword that stands alone
	id    string // the value, if there is one
	at    int
	len   int
}

// relation compares two arithmetic expressions.
type relation struct {
	op   string // = != < > <= >=
	a, b arithmetic
	at   int
	len  int
}

// arithmetic is *number, *length, *access or *operation.
type arithmetic any

type number struct{ v uint32 }

type length struct{}

// access reads 1, 2 or 4 bytes of a header.
type access struct {
	proto string
	off   arithmetic
	size  int
}

type operation struct {
	op   string
	a, b arithmetic
}

type parser struct {
	text   string
	tokens []token
	pos    int
	depth  int
}

// maxDepth is the deepest nesting of parentheses and negations.
const maxDepth = 100

func parse(text string) (node, error) {
	ts, err := lex(text)
	if err != nil {
		return nil, err
	}
	p := &parser{text: text, tokens: ts}
	if p.peek().kind == end {
		return nil, p.fail(p.peek(), "the filter is empty")
	}
	n, err := p.expression(nil)
	if err != nil {
		return nil, err
	}
	if t := p.peek(); t.kind != end {
		return nil, p.fail(t, "and, or, or the end was expected")
	}
	return n, nil
}

func (p *parser) peek() token { return p.tokens[p.pos] }

func (p *parser) next() token {
	t := p.tokens[p.pos]
	if t.kind != end {
		p.pos++
	}
	return t
}

// is reports whether the next token is one of these symbols or unescaped words, and if so takes it.
func (p *parser) is(texts ...string) bool {
	t := p.peek()
	for _, s := range texts {
		if t.kind != end && t.text == s && !t.raw {
			p.pos++
			return true
		}
	}
	return false
}

func (p *parser) fail(t token, message string) error {
	return &Error{Text: p.text, At: t.at, Len: max(len(t.text), 1), Message: message, Syntax: true}
}

// lastPrimitive returns the primitive whose qualifiers a bare value behind n inherits.
func lastPrimitive(n node) *primitive {
	switch n := n.(type) {
	case *primitive:
		return n
	case *logic:
		return lastPrimitive(n.b)
	case *negation:
		return lastPrimitive(n.a)
	}
	return nil
}

// term reads a negation, a group, a primitive or a relation. A value without qualifiers inherits those of before.
func (p *parser) term(before *primitive) (node, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail(p.peek(), "too many nested parentheses")
	}
	defer func() { p.depth-- }()
	if p.is("not", "!") {
		a, err := p.term(before)
		return &negation{a}, err
	}
	if start := p.pos; p.startsRelation() {
		n, err := p.relation()
		if err == nil {
			return n, nil
		}
		if p.tokens[start].text != "(" {
			return nil, err
		}
		p.pos = start // a group of terms
	}
	if p.is("(") {
		n, err := p.expression(before)
		if err != nil {
			return nil, err
		}
		if !p.is(")") {
			return nil, p.fail(p.peek(), "\")\" was expected")
		}
		return n, nil
	}
	return p.primitive(before)
}

// expression reads terms joined by and and or, which bind alike, from left to right. Its first value may have the
// qualifiers of before, as in "port (80 or 443)"; nil stands for none.
func (p *parser) expression(before *primitive) (node, error) {
	a, err := p.term(before)
	if err != nil {
		return nil, err
	}
	for {
		var and bool
		switch {
		case p.is("and", "&&"):
			and = true
		case p.is("or", "||"):
		default:
			return a, nil
		}
		last := lastPrimitive(a)
		if last == nil {
			last = before
		}
		b, err := p.term(last)
		if err != nil {
			return nil, err
		}
		a = &logic{and, a, b}
	}
}

// startsRelation reports whether an arithmetic expression may begin here.
func (p *parser) startsRelation() bool {
	t, after := p.peek(), p.tokens[min(p.pos+1, len(p.tokens)-1)]
	switch {
	case t.kind == symbol:
		return t.text == "(" || t.text == "-"
	case t.kind != word || t.raw:
		return false
	case t.text == "len":
		return true
	case after.text == "[":
		return true
	}
	_, err := parseNumber(t.text)
	return err == nil && after.kind == symbol && after.text != ")" && after.text != "&&" && after.text != "||" && after.text != "/" && after.text != "!"
}

var relational = []string{"=", "==", "!=", "<", ">", "<=", ">="}

func (p *parser) relation() (node, error) {
	first := p.peek()
	a, err := p.arithmetic(0)
	if err != nil {
		return nil, err
	}
	op := p.peek()
	if !p.is(relational...) {
		return nil, p.fail(op, "a comparison was expected")
	}
	b, err := p.arithmetic(0)
	if err != nil {
		return nil, err
	}
	if op.text == "==" {
		op.text = "="
	}
	last := p.tokens[p.pos-1]
	return &relation{op.text, a, b, first.at, last.at + len(last.text) - first.at}, nil
}

// binding are the arithmetic operators, the loosest first (pcap-filter's grammar: | ^ & << + *).
var binding = [][]string{{"|"}, {"^"}, {"&"}, {"<<", ">>"}, {"+", "-"}, {"*", "/", "%"}}

func (p *parser) arithmetic(level int) (arithmetic, error) {
	if level == len(binding) {
		return p.operand()
	}
	a, err := p.arithmetic(level + 1)
	if err != nil {
		return nil, err
	}
	for {
		op := p.peek().text
		if p.peek().kind != symbol || !p.is(binding[level]...) {
			return a, nil
		}
		b, err := p.arithmetic(level + 1)
		if err != nil {
			return nil, err
		}
		a = &operation{op, a, b}
	}
}

// named are the numbers with names (pcap-filter(7)).
var named = map[string]uint32{
	"icmptype": 0, "icmpcode": 1, "icmp6type": 0, "icmp6code": 1, "tcpflags": 13,
	"tcp-fin": 1, "tcp-syn": 2, "tcp-rst": 4, "tcp-push": 8, "tcp-ack": 16, "tcp-urg": 32, "tcp-ece": 64, "tcp-cwr": 128,
	"icmp-echoreply": 0, "icmp-unreach": 3, "icmp-sourcequench": 4, "icmp-redirect": 5, "icmp-echo": 8,
	"icmp-routeradvert": 9, "icmp-routersolicit": 10, "icmp-timxceed": 11, "icmp-paramprob": 12, "icmp-tstamp": 13,
	"icmp-tstampreply": 14, "icmp-ireq": 15, "icmp-ireqreply": 16, "icmp-maskreq": 17, "icmp-maskreply": 18,
	"icmp6-destinationrunreach": 1, "icmp6-packettoobig": 2, "icmp6-timeexceeded": 3, "icmp6-parameterproblem": 4,
	"icmp6-echo": 128, "icmp6-echoreply": 129, "icmp6-multicastlistenerquery": 130, "icmp6-multicastlistenerreportv1": 131,
	"icmp6-multicastlistenerdone": 132, "icmp6-routersolicit": 133, "icmp6-routeradvert": 134, "icmp6-neighborsolicit": 135,
	"icmp6-neighboradvert": 136, "icmp6-redirect": 137, "icmp6-routerrenum": 138, "icmp6-nodeinformationquery": 139,
	"icmp6-nodeinformationresponse": 140, "icmp6-ineighbordiscoverysolicit": 141, "icmp6-ineighbordiscoveryadvert": 142,
	"icmp6-multicastlistenerreportv2": 143, "icmp6-homeagentdiscoveryrequest": 144, "icmp6-homeagentdiscoveryreply": 145,
	"icmp6-mobileprefixsolicit": 146, "icmp6-mobileprefixadvert": 147, "icmp6-certpathsolicit": 148, "icmp6-certpathadvert": 149,
	"icmp6-multicastrouteradvert": 151, "icmp6-multicastroutersolicit": 152, "icmp6-multicastrouterterm": 153,
}

func (p *parser) operand() (arithmetic, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail(p.peek(), "too many nested parentheses")
	}
	defer func() { p.depth-- }()
	t := p.next()
	switch {
	case t.kind == symbol && t.text == "(":
		a, err := p.arithmetic(0)
		if err == nil && !p.is(")") {
			err = p.fail(p.peek(), "\")\" was expected")
		}
		return a, err
	case t.kind == symbol && t.text == "-":
		a, err := p.operand()
		return &operation{"-", &number{0}, a}, err
	case t.kind != word:
		return nil, p.fail(t, "a number or bytes of a header were expected")
	case t.text == "len":
		return &length{}, nil
	}
	if p.is("[") {
		return p.access(t)
	}
	if v, ok := named[t.text]; ok {
		return &number{v}, nil
	}
	v, err := parseNumber(t.text)
	if err != nil {
		return nil, p.fail(t, "a number or bytes of a header were expected")
	}
	return &number{v}, nil
}

// access reads the brackets behind the name of a header.
func (p *parser) access(proto token) (arithmetic, error) {
	off, err := p.arithmetic(0)
	if err != nil {
		return nil, err
	}
	a := &access{proto: proto.text, off: off, size: 1}
	if p.is(":") {
		t := p.next()
		if a.size, err = strconv.Atoi(t.text); err != nil || a.size != 1 && a.size != 2 && a.size != 4 {
			return nil, p.fail(t, "1, 2 or 4 bytes can be read")
		}
	}
	if !p.is("]") {
		return nil, p.fail(p.peek(), "\"]\" was expected")
	}
	return a, nil
}

// parseNumber reads a number: decimal, hexadecimal with 0x, octal with 0.
func parseNumber(s string) (uint32, error) {
	if strings.ContainsAny(s, "_oObB") && !strings.HasPrefix(s, "0x") && !strings.HasPrefix(s, "0X") {
		return 0, strconv.ErrSyntax
	}
	v, err := strconv.ParseUint(s, 0, 32)
	return uint32(v), err
}
