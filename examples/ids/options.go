package main

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// option parses an option of a rule; b is the buffer to which contents apply.
func (r *rule) option(name, value string, b buffer) error {
	var last *test
	if n := len(r.tests[b]); n > 0 {
		last = &r.tests[b][n-1]
	}
	switch name {
	case "msg":
		text, _, err := unquote(value)
		r.message = strings.NewReplacer(`\"`, `"`, `\;`, ";", `\:`, ":", `\\`, `\`).Replace(text)
		return err
	case "sid":
		return number(value, 1, 1<<31-1, &r.sid)
	case "rev":
		return number(value, 1, 1<<31-1, &r.revision)
	case "gid":
		return number(value, 1, 1<<31-1, &r.gid)
	case "priority":
		return number(value, 1, 255, &r.priority)
	case "classtype":
		r.class = value
	case "reference", "metadata", "target":
	case "content":
		text, negated, err := unquote(value)
		if err != nil {
			return err
		}
		c, err := parseContent(text)
		if err != nil {
			return err
		}
		r.tests[b] = append(r.tests[b], test{content: c, folded: fold(c), negated: negated, depth: -1, within: -1})
	case "pcre":
		text, negated, err := unquote(value)
		if err != nil {
			return err
		}
		re, relative, err := parsePCRE(text)
		if err != nil {
			return err
		}
		if err := onlyASCII(re.String()); err != nil {
			return err
		}
		r.tests[b] = append(r.tests[b], test{re: re, negated: negated, relative: relative && last != nil, depth: -1, within: -1})
	case "nocase", "offset", "depth", "distance", "within", "startswith", "endswith", "fast_pattern":
		if last == nil || last.re != nil {
			return errors.New("there is no content before it")
		}
		return last.modify(name, value, len(r.tests[b]) > 1)
	case "flow":
		return r.flow(value)
	case "flowbits":
		return r.flowbit(value)
	case "noalert":
		r.noAlert = true
	case "dsize":
		return r.dsize(value)
	case "threshold":
		return r.threshold(value)
	default:
		return errors.New("the option is not understood")
	}
	return nil
}

// number parses a decimal number.
func number(s string, least, most int, n *int) (err error) {
	if *n, err = strconv.Atoi(s); err != nil || *n < least || *n > most {
		return fmt.Errorf("%q is no number from %d to %d", s, least, most)
	}
	return nil
}

// onlyASCII refuses expressions with bytes from 0x80 on: Go's regexp reads text, and would take them for letters.
func onlyASCII(expression string) error {
	tree, err := syntax.Parse(expression, syntax.Perl)
	if err != nil {
		return err
	}
	var check func(*syntax.Regexp) error
	check = func(e *syntax.Regexp) error {
		for i, c := range e.Rune {
			if e.Op == syntax.OpCharClass && (i%2 == 1 && c == unicode.MaxRune || c == 0x80 && i%2 == 0 && e.Rune[i+1] == unicode.MaxRune) {
				continue
			}
			if c > unicode.MaxASCII && c != 'ſ' && c != 'K' { // Go takes these for upper and lower case of s and k
				return errors.New("bytes from 0x80 on in an expression are not understood; write them as content")
			}
		}
		for _, sub := range e.Sub {
			if err := check(sub); err != nil {
				return err
			}
		}
		return nil
	}
	return check(tree)
}

// modify changes a content. It may be relative only if follows is set: another test comes before it.
func (t *test) modify(name, value string, follows bool) error {
	switch name {
	case "nocase":
		t.nocase = true
	case "fast_pattern":
		if value != "" {
			return fmt.Errorf("%s is not understood", value)
		}
		if t.negated {
			return errors.New("a negated content cannot be it")
		}
		t.fast = true
	case "offset":
		return number(value, 0, 65535, &t.offset)
	case "depth":
		if err := number(value, 1, 65535, &t.depth); err != nil {
			return err
		}
		if t.depth < len(t.content) {
			return errors.New("the content is longer")
		}
	case "startswith":
		t.atStart, t.depth = true, len(t.content)
	case "endswith":
		t.atEnd = true
	case "distance", "within":
		if !follows {
			return errors.New("there is nothing before the content that it could count from")
		}
		t.relative = true
		if name == "distance" {
			return number(value, -65535, 65535, &t.distance)
		}
		if err := number(value, 1, 65535, &t.within); err != nil {
			return err
		}
		if t.within < len(t.content) {
			return errors.New("the content is longer")
		}
	}
	return nil
}

func (r *rule) flow(value string) error {
	for word := range strings.SplitSeq(value, ",") {
		switch strings.TrimSpace(word) {
		case "to_server", "from_client":
			r.toServer = true
		case "to_client", "from_server":
			r.toClient = true
		case "established":
			r.established = true
		case "not_established":
			r.unestablished = true
		case "stateless":
		case "only_stream":
			r.onlyStream = true
		case "no_stream":
			r.onlyPackets = true
		default:
			return fmt.Errorf("%s is not understood", word)
		}
	}
	if r.toServer && r.toClient || r.established && r.unestablished || r.onlyStream && r.onlyPackets {
		return errors.New("its words contradict each other")
	}
	return nil
}

func (r *rule) flowbit(value string) error {
	do, name, named := strings.Cut(value, ",")
	do, name = strings.TrimSpace(do), strings.TrimSpace(name)
	if do == "noalert" && !named {
		r.noAlert = true
		return nil
	}
	if !slices.Contains([]string{"set", "unset", "toggle", "isset", "isnotset"}, do) || name == "" || strings.ContainsAny(name, ",|") {
		return fmt.Errorf("%s is not understood; set, unset, toggle, isset and isnotset with one name are, and noalert", value)
	}
	r.bits = append(r.bits, bit{do, name})
	return nil
}

// dsize parses 5, <5, >5 or 5<>9; the last excludes its ends.
func (r *rule) dsize(value string) error {
	s := span{0, 65535}
	var err error
	from, to, isRange := strings.Cut(value, "<>")
	switch {
	case isRange:
		err = errors.Join(number(strings.TrimSpace(from), 0, 65535, &s.from), number(strings.TrimSpace(to), 0, 65535, &s.to))
		s.from++
		s.to--
	case strings.HasPrefix(value, "<"):
		err = number(strings.TrimSpace(value[1:]), 1, 65535, &s.to)
		s.to--
	case strings.HasPrefix(value, ">"):
		err = number(strings.TrimSpace(value[1:]), 0, 65535, &s.from)
		s.from++
	default:
		err = number(value, 0, 65535, &s.from)
		s.to = s.from
	}
	r.size = &s
	return err
}

func (r *rule) threshold(value string) error {
	t := threshold{}
	for part := range strings.SplitSeq(value, ",") {
		name, v, _ := strings.Cut(strings.TrimSpace(part), " ")
		v = strings.TrimSpace(v)
		seconds := 0
		switch {
		case name == "type" && slices.Contains([]string{"limit", "threshold", "both"}, v):
			t.kind = v
		case name == "track" && slices.Contains([]string{"by_src", "by_dst", "by_rule"}, v):
			t.track = v
		case name == "count":
			if err := number(v, 1, 1<<31-1, &t.count); err != nil {
				return err
			}
		case name == "seconds":
			if err := number(v, 1, 1<<31-1, &seconds); err != nil {
				return err
			}
			t.seconds = time.Duration(seconds) * time.Second
		default:
			return fmt.Errorf("%q is not understood", strings.TrimSpace(part))
		}
	}
	if t.kind == "" || t.track == "" || t.count == 0 || t.seconds == 0 {
		return errors.New("it needs type, track, count and seconds")
	}
	r.limit = &t
	return nil
}

// check returns an error for rules that can never match, or with incompatible options.
func (r *rule) check() error {
	if r.sid == 0 {
		return errors.New("there is no sid")
	}
	for b := range r.tests {
		for i := range r.tests[b] {
			t := &r.tests[b][i]
			if t.atStart && (t.relative || t.offset != 0) {
				return errors.New("startswith does not go together with offset, distance and within")
			}
			if t.atEnd && buffer(b) == payload && (r.protocol != "udp" && r.protocol != "icmp" && !r.onlyPackets && r.size == nil) {
				return errors.New("endswith: a stream has no end; use it with udp, dsize or flow:no_stream")
			}
		}
	}
	app := r.protocol == "http" || r.protocol == "tls" || r.protocol == "dns"
	if app && len(r.tests[payload]) > 0 {
		return fmt.Errorf("content without a buffer of %s before it is not understood in rules of %s", r.protocol, r.protocol)
	}
	used := 0
	for b := range r.tests {
		if len(r.tests[b]) > 0 {
			used++
		}
	}
	if r.size != nil && used > 0 && len(r.tests[payload]) == 0 {
		return errors.New("dsize is about packets, and goes together with contents of the payload only")
	}
	if used > 1 && len(r.tests[payload]) > 0 {
		return errors.New("contents of the payload and of other buffers in one rule are not understood")
	}
	if app && used == 0 {
		return fmt.Errorf("a rule of %s needs a content", r.protocol)
	}
	return nil
}

// fastPattern returns the content to search for first, and its buffer: the marked content, or else the longest.
func (r *rule) fastPattern() (b buffer, pattern []byte) {
	marked := false
	for at := range r.tests {
		for i := range r.tests[at] {
			t := &r.tests[at][i]
			if t.re == nil && !t.negated && !marked && (t.fast || len(t.content) > len(pattern)) {
				b, pattern, marked = buffer(at), t.content, t.fast
			}
		}
	}
	return b, pattern
}

// absolute reports whether a test of the payload counts from its beginning.
func (r *rule) absolute() bool {
	return slices.ContainsFunc(r.tests[payload], func(t test) bool { return !t.relative && (t.offset > 0 || t.depth >= 0) })
}
