package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// schemaFile is the JSON Schema of all output of --json. It is generated from the Go types and their comments: go test
// ./cmd/divert -run TestSchema -update.
const schemaFile = "../../docs/json-schema/divert.json"

// schemaKinds are the objects of the schema, each a line of output.
var schemaKinds = []struct{ name, goType, about string }{
	{"packet", "jsonPacket", "a packet: dump, and reject -v"},
	{"event", "jsonEvent", "an event of a socket or a flow: sockets, flows, and dump at these layers"},
	{"handle", "jsonHandle", "an event of a handle: list, watch, kill, and dump --layer reflect"},
	{"process-flows", "flowTotals", "the flows of a process: flows --top"},
	{"connection", "stream", "a connection that has ended: proxy"},
	{"blocked", "jsonBlocked", "a connection that was blocked: web"},
	{"decision", "firewall.Event", "a decision on a connection: firewall run"},
	{"top", "jsonTop", "an interval: top"},
	{"check", "jsonCheck", "a filter that compiles: filter check"},
	{"explanation", "jsonExplanation", "what a filter does: filter explain"},
	{"filter", "jsonText", "a filter: filter format, filter from-tcpdump"},
	{"object", "jsonObject", "an object string: filter object"},
	{"field", "jsonField", "a field: filter fields"},
	{"result", "jsonResult", "whether a packet matches: filter eval"},
	{"doctor", "probe.Report", "what this system has, on Linux: doctor"},
	{"doctor-windows", "windows.Report", "what this system has, on Windows: doctor"},
	{"removed", "jsonRemoved", "something that was removed: clean"},
	{"version", "jsonVersion", "the version: version"},
	{"start", "started", "a run begins, on standard error"},
	{"summary", "summary", "a run has ended, on standard error"},
	{"proxy-summary", "proxySummary", "a run of proxy has ended, on standard error"},
	{"web-summary", "webSummary", "a run of web has ended, on standard error"},
	{"firewall-summary", "firewallSummary", "a run of firewall has ended, on standard error"},
	{"rules", "rulesRead", "rules were read again: firewall run, on standard error"},
	{"warning", "warning", "something went wrong and the run goes on, on standard error"},
	{"set", "setRead", "the file of a set was read again, on standard error"},
	{"list", "listRead", "the list of web was read again, on standard error"},
	{"error", "jsonError", "the error that ended a run, on standard error"},
}

// schemaSources are the folders with the types of the objects, by package name.
var schemaSources = map[string]string{
	"": ".", "impair": "../../impair", "firewall": "../../firewall", "probe": "../../internal/linux/probe", "windows": "../../internal/windows",
}

// schemaTypes are the types with a simple JSON form.
var schemaTypes = map[string]map[string]any{
	"string": {"type": "string"}, "bool": {"type": "boolean"}, "float64": {"type": "number"},
	"time.Time":  {"type": "string", "format": "date-time"},
	"netip.Addr": {"type": "string", "description": "an IPv4 or IPv6 address"}, "netip.AddrPort": {"type": "string", "description": "an address and a port"},
	"firewall.Action": {"type": "string", "enum": []any{"allow", "deny", "reject", "log"}},
	"probe.Version":   {"type": "string", "description": "a version of Linux, or empty"},
}

// schemaWriter makes the schema of types.
type schemaWriter struct {
	t     *testing.T
	types map[string]*ast.StructType // by name, prefixed with the package unless it is this one
	defs  map[string]any
	names map[string]string // of definitions, by type
}

func newSchemaWriter(t *testing.T) *schemaWriter {
	w := &schemaWriter{t: t, types: map[string]*ast.StructType{}, defs: map[string]any{}, names: map[string]string{}}
	for name, dir := range schemaSources {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), dir+"/"+e.Name(), nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.TypeSpec); ok {
					if st, ok := s.Type.(*ast.StructType); ok {
						w.types[strings.TrimPrefix(name+"."+s.Name.Name, ".")] = st
					}
				}
				return true
			})
		}
	}
	for _, k := range schemaKinds {
		w.names[k.goType] = k.name
	}
	return w
}

// object returns the schema of a struct type of a package.
func (w *schemaWriter) object(name string) map[string]any {
	st := w.types[name]
	if st == nil {
		w.t.Fatalf("there is no struct %s", name)
	}
	pkg := ""
	if at := strings.LastIndex(name, "."); at >= 0 {
		pkg = name[:at+1]
	}
	properties, required := map[string]any{}, []string{}
	for _, f := range st.Fields.List {
		if len(f.Names) == 0 { // embedded
			o := w.object(pkg + f.Type.(*ast.Ident).Name)
			for k, v := range o["properties"].(map[string]any) {
				properties[k] = v
			}
			required = append(required, o["required"].([]string)...)
			continue
		}
		if f.Tag == nil {
			w.t.Errorf("%s.%s has no name in JSON", name, f.Names[0])
			continue
		}
		key, options, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
		if !strings.Contains(options, "omitempty") {
			required = append(required, key)
		}
		p := w.value(pkg, f.Type)
		text := strings.TrimSpace(f.Comment.Text())
		if text == "" {
			text = strings.Join(strings.Fields(f.Doc.Text()), " ")
		}
		if strings.HasPrefix(text, `"`) && strings.Count(text, `"`) == 2 && strings.HasSuffix(text, `"`) {
			p["const"] = strings.Trim(text, `"`)
		} else if text != "" && p["$ref"] == nil {
			p["description"] = text
		}
		properties[key] = p
	}
	slices.Sort(required)
	return map[string]any{"type": "object", "properties": properties, "required": required}
}

// value returns the schema of a type.
func (w *schemaWriter) value(pkg string, e ast.Expr) map[string]any {
	switch e := e.(type) {
	case *ast.StarExpr:
		return w.value(pkg, e.X)
	case *ast.ArrayType:
		return map[string]any{"type": "array", "items": w.value(pkg, e.Elt)}
	case *ast.SelectorExpr:
		return w.named(fmt.Sprintf("%s.%s", e.X, e.Sel))
	case *ast.Ident:
		switch {
		case strings.HasPrefix(e.Name, "uint"):
			return map[string]any{"type": "integer", "minimum": 0}
		case strings.HasPrefix(e.Name, "int"):
			return map[string]any{"type": "integer"}
		case schemaTypes[e.Name] != nil:
			return w.named(e.Name)
		}
		return w.named(pkg + e.Name)
	}
	w.t.Fatalf("%T has no schema", e)
	return nil
}

func (w *schemaWriter) named(name string) map[string]any {
	if s := schemaTypes[name]; s != nil {
		c := map[string]any{}
		for k, v := range s {
			c[k] = v
		}
		return c
	}
	return map[string]any{"$ref": "#/$defs/" + w.define(name)}
}

// define makes the definition of a type and returns its name.
func (w *schemaWriter) define(goType string) string {
	name := w.names[goType]
	if name == "" {
		name = strings.TrimPrefix(goType[strings.LastIndex(goType, ".")+1:], "json")
		name = strings.ToLower(name[:1]) + name[1:]
		if at := strings.Index(goType, "."); at >= 0 {
			name = goType[:at] + "-" + name
		}
		w.names[goType] = name
	}
	if w.defs[name] == nil {
		w.defs[name] = map[string]any{} // the type may refer to itself
		w.defs[name] = w.object(goType)
	}
	return name
}

// schema returns the text of the schema.
func schema(t *testing.T) []byte {
	w := newSchemaWriter(t)
	var anyOf []any
	for _, k := range schemaKinds {
		w.define(k.goType)
		w.defs[k.name].(map[string]any)["description"] = k.about
		anyOf = append(anyOf, map[string]any{"$ref": "#/$defs/" + k.name})
	}
	b, err := json.MarshalIndent(map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema",
		"$id":     "https://github.com/opendivert/divert/docs/json-schema/divert.json",
		"title":   "A line of the output of divert --json",
		"anyOf":   anyOf,
		"$defs":   w.defs,
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// TestSchemaIsCurrent compares the schema in the documentation with the types.
func TestSchemaIsCurrent(t *testing.T) {
	got := schema(t)
	if *update {
		if err := os.WriteFile(schemaFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != strings.ReplaceAll(string(want), "\r\n", "\n") {
		t.Errorf("%s differs from the types: go test ./cmd/divert -run TestSchema -update", schemaFile)
	}
	table, err := os.ReadFile("../../docs/json.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range schemaKinds {
		if !strings.Contains(string(table), "| `"+k.name+"` |") {
			t.Errorf("docs/json.md lacks %s", k.name)
		}
	}
}

// schemas are the compiled schemas of the kinds. They reject unknown keys.
func schemas(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	var doc map[string]any
	if err := json.Unmarshal(schema(t), &doc); err != nil {
		t.Fatal(err)
	}
	for _, d := range doc["$defs"].(map[string]any) {
		d.(map[string]any)["additionalProperties"] = false
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("divert.json", doc); err != nil {
		t.Fatal(err)
	}
	list := map[string]*jsonschema.Schema{}
	for _, k := range schemaKinds {
		s, err := c.Compile("divert.json#/$defs/" + k.name)
		if err != nil {
			t.Fatal(err)
		}
		list[k.name] = s
	}
	return list
}

// checkLines validates lines of output, each against one of the kinds, and counts the lines of each kind.
func checkLines(t *testing.T, all map[string]*jsonschema.Schema, text string, kinds ...string) map[string]int {
	t.Helper()
	found := map[string]int{}
	for line := range strings.Lines(text) {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err != nil {
			t.Errorf("%v: %s", err, line)
			continue
		}
		var errs []error
		for _, k := range kinds {
			err := all[k].Validate(v)
			if err == nil {
				found[k]++
			}
			errs = append(errs, err)
		}
		if !slices.Contains(errs, nil) {
			t.Errorf("%s matches no kind in %v: %v", line, kinds, errs)
		}
	}
	return found
}

// TestSchema validates the output of commands that need no network against the schema.
func TestSchema(t *testing.T) {
	all := schemas(t)
	for _, test := range []struct {
		args     string
		in       string
		out, err string // the kinds; none: no output is allowed
	}{
		{"filter check --json udp", "", "check", ""},
		{"filter check --json 'tcp and udp'", "", "check", ""},
		{"filter check --json --layer reflect 'priority > 1'", "", "check", ""},
		{"filter explain --json 'tcp.DstPort in {80, 443} or random8 < 3'", "", "explanation", ""},
		{"filter explain --json true", "", "explanation", ""},
		{"filter format --json udp", "", "filter", ""},
		{"filter object --json udp", "", "object", ""},
		{"filter object --json 'tcp.DstPort in {80, 443}'", "", "object", ""},
		{"filter fields --json", "", "field", ""},
		{"filter fields --json --layer flow", "", "field", ""},
		{"filter from-tcpdump --json 'port 80 and less 100'", "", "filter", ""},
		{"filter from-tcpdump --json 'ether host 1:2:3:4:5:6'", "", "", "error"},
		{"filter eval --json udp", udpHex + "\n" + strings.ReplaceAll(synHex, " ", ""), "result", ""},
		{"filter eval --json -v udp.DstPort==53", udpHex, "result", ""},
		{"filter eval --json udp", "45", "", "error"},
		{"version --json", "", "version", ""},
		{"dump --json -r -", string(sampleFile(t)), "packet", "warning"},
		{"dump --json -x -r -", string(sampleFile(t)), "packet", "warning"},
		{"dump --json -r nothing", "", "", "error"},
		{"dump --json -r - -w x -q", "", "", "error"},
		{"dump --json tcp port 80", "", "", "error"},
		{"dump --json --count", "", "", "error"},
		{"drop --json", "", "", "error"},
		{"drop --jso --json udp", "", "", "error"},
		{"drop --json --priority", "", "", "error"},
		{"filter check --json --strict --layer flow tcp.DstPort", "", "", "error"},
		{"filter check --json --strict @WinDiv_x", "", "", "error"},
		{"kill --json", "", "", "error"},
		{"nothing --json", "", "", "error"},
	} {
		r := runCommand(t, test.in, words(test.args)...)
		for _, s := range []struct{ text, kind string }{{r.out, test.out}, {r.errout, test.err}} {
			switch n := checkLines(t, all, s.text, strings.Fields(s.kind)...); {
			case s.kind != "" && n[s.kind] == 0:
				t.Errorf("%s: no %s in the output", test.args, s.kind)
			case s.kind == "" && s.text != "":
				t.Errorf("%s: %s", test.args, s.text)
			}
		}
		if test.err == "error" != (r.status != exitOK) || test.err == "error" && !strings.Contains(r.errout, fmt.Sprintf(`"status":%d,`, r.status)) {
			t.Errorf("%s: status %d: %s", test.args, r.status, r.errout)
		}
	}
	if err := all["packet"].Validate(map[string]any{"time": "yesterday", "length": 3}); err == nil {
		t.Error("the schema accepts any object as a packet")
	}
}
