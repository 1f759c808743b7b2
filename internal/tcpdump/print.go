package tcpdump

import (
	"slices"
	"strings"
)

// condition is a part of a filter of Divert: constant, *test, *all, *any or *not.
type condition any

type constant bool

// test compares a field with values. Without values it is the field alone: not zero.
type test struct {
	field  string
	op     string // "", or a comparison other than ==, with one value
	values []string
}

type all struct{ list []condition }

type oneOf struct{ list []condition }

type not struct{ c condition }

func field(name string) *test { return &test{field: name} }

func equals(name string, values ...string) *test { return &test{field: name, values: values} }

func compare(name, op, value string) *test {
	return &test{field: name, op: op, values: []string{value}}
}

// family is the protocol that a packet must have for a test to hold, "" if it may have any.
func (t *test) family() string {
	name, _, dotted := strings.Cut(t.field, ".")
	switch name {
	case "tcp", "udp", "icmp", "icmpv6", "ip", "ipv6":
		if dotted || len(t.values) == 0 {
			return name
		}
	}
	return ""
}

// layerOf is 3 for a protocol of the network layer, 4 for one of the transport layer. A packet has one of each.
func layerOf(family string) int {
	switch family {
	case "ip", "ipv6":
		return 3
	case "":
		return 0
	}
	return 4
}

// implies reports whether c holds only for packets of the family.
func implies(c condition, family string) bool {
	is := func(c condition) bool { return implies(c, family) }
	switch c := c.(type) {
	case *test:
		return c.family() == family
	case *all:
		return slices.ContainsFunc(c.list, is)
	case *oneOf:
		return !slices.ContainsFunc(c.list, func(c condition) bool { return !is(c) })
	}
	return false
}

// within returns the form of c for packets of a family.
func within(c condition, family string) condition {
	switch c := c.(type) {
	case *test:
		if f := c.family(); f != family && layerOf(f) == layerOf(family) {
			return constant(false)
		}
	case *all:
		return allOf(each(c.list, family)...)
	case *oneOf:
		return anyOf(each(c.list, family)...)
	}
	return c
}

func each(list []condition, family string) []condition {
	out := make([]condition, len(list))
	for i, c := range list {
		out[i] = within(c, family)
	}
	return out
}

// allOf joins conditions by and.
func allOf(cs ...condition) condition {
	var list []condition
	for _, c := range cs {
		switch c := c.(type) {
		case constant:
			if !c {
				return constant(false)
			}
		case *all:
			list = append(list, c.list...)
		default:
			list = append(list, c)
		}
	}
	for i := 0; i < len(list); i++ {
		t, ok := list[i].(*test)
		if !ok || t.op != "" || t.family() != t.field {
			continue
		}
		implied := false
		for j := range list {
			if j == i {
				continue
			}
			list[j] = within(list[j], t.field)
			if list[j] == constant(false) {
				return constant(false)
			}
			implied = implied || implies(list[j], t.field)
		}
		if implied {
			list = slices.Delete(list, i, i+1)
			i--
		}
	}
	switch len(list) {
	case 0:
		return constant(true)
	case 1:
		return list[0]
	}
	return &all{list}
}

// anyOf joins conditions by or. Tests whether one field has one of several values become one test.
func anyOf(cs ...condition) condition {
	var list []condition
	var add func(c condition)
	add = func(c condition) {
		if o, ok := c.(*oneOf); ok {
			for _, c := range o.list {
				add(c)
			}
			return
		}
		if t, ok := c.(*test); ok && t.op == "" && len(t.values) > 0 {
			for i, other := range list {
				if o, ok := other.(*test); ok && o.field == t.field && o.op == "" && len(o.values) > 0 {
					merged := equals(o.field, o.values...)
					for _, v := range t.values {
						if !slices.Contains(merged.values, v) {
							merged.values = append(slices.Clip(merged.values), v)
						}
					}
					list[i] = merged
					return
				}
			}
		}
		list = append(list, c)
	}
	for _, c := range cs {
		if b, ok := c.(constant); ok {
			if b {
				return constant(true)
			}
			continue
		}
		add(c)
	}
	switch len(list) {
	case 0:
		return constant(false)
	case 1:
		return list[0]
	}
	return &oneOf{list}
}

func negate(c condition) condition {
	switch c := c.(type) {
	case constant:
		return !c
	case *not:
		return c.c
	}
	return &not{c}
}

// bare are the fields of every packet, for which not is the exact opposite.
var bare = set("ip", "ipv6", "tcp", "udp", "icmp", "icmpv6", "inbound", "outbound", "fragment")

// text prints a condition in the language of filters. If inside, conditions joined by or are in parentheses.
func text(c condition, inside bool) string {
	switch c := c.(type) {
	case constant:
		if c {
			return "true"
		}
		return "false"
	case *test:
		return c.String()
	case *all:
		return join(c.list, " and ")
	case *oneOf:
		if inside {
			return "(" + join(c.list, " or ") + ")"
		}
		return join(c.list, " or ")
	case *not:
		if t, ok := c.c.(*test); ok && len(t.values) == 0 && bare[t.field] {
			return "not " + t.field
		}
		return "not (" + text(c.c, false) + ")"
	}
	return ""
}

func join(list []condition, by string) string {
	parts := make([]string, len(list))
	for i, c := range list {
		parts[i] = text(c, by == " and ")
	}
	return strings.Join(parts, by)
}

func (t *test) String() string {
	switch {
	case len(t.values) == 0 && t.op == "not":
		return "not " + t.field
	case len(t.values) == 0:
		return t.field
	case t.op == "not in" || t.op == "" && (len(t.values) > 1 || isRange(t.values[0])):
		op := t.op
		if op == "" {
			op = "in"
		}
		return t.field + " " + op + " {" + strings.Join(t.values, ", ") + "}"
	case t.op == "":
		return t.field + " == " + t.values[0]
	}
	return t.field + " " + t.op + " " + t.values[0]
}

// isRange reports whether a value is a range of numbers.
func isRange(v string) bool { return strings.Contains(v, "-") }
