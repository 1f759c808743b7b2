package filter

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opendivert/divert/packet"
)

// formatted compiles a filter, checks its text, and returns the program together with the program of that text.
func formatted(t *testing.T, filter string, layer packet.Layer, want string) (p, again *Program) {
	t.Helper()
	p, err := Compile(filter, layer, Extended)
	ok(t, err)
	text, err := p.Format()
	ok(t, err)
	if text != want {
		t.Errorf("%s becomes %s, want %s", filter, text, want)
	}
	again, err = Compile(text, layer, Extended)
	ok(t, err)
	return p, again
}

// TestNames checks which items match tests of names, and that programs print as expected.
func TestNames(t *testing.T) {
	indexes := map[string]uint32{"eth0": 2, "lo": 1, "we\"ird\\\x1b": 7}
	for _, row := range []struct {
		filter  string
		format  string
		matches string // the indexes that match, of 1, 2, 3 and 7
	}{
		{`iface == "eth0"`, `iface = "eth0"`, "2"},
		{`iface = "eth0"`, `iface = "eth0"`, "2"},
		{`iface != "eth0"`, `iface != "eth0"`, "1 3 7"},
		{`not iface == "eth0"`, `iface != "eth0"`, "1 3 7"},
		{`not not iface == "eth0"`, `iface = "eth0"`, "2"},
		{`iface in {"eth0", "lo"}`, `iface = "eth0" or iface = "lo"`, "1 2"},
		{`iface in {"eth0", "eth0",}`, `iface = "eth0"`, "2"},
		{`iface not in {"eth0", "lo"}`, `iface != "eth0" and iface != "lo"`, "3 7"},
		{`not iface in {"eth0", "lo"}`, `iface != "eth0" and iface != "lo"`, "3 7"},
		{`not iface not in {"eth0", "lo"}`, `iface = "eth0" or iface = "lo"`, "1 2"},
		{`not (iface in {"eth0", "lo"})`, `(iface = "eth0" or iface = "lo"? false: true)`, "3 7"},
		{`iface == "eth1"`, `iface = "eth1"`, ""},
		{`iface != "eth1"`, `iface != "eth1"`, "1 2 3 7"},
		{`iface == "we\"ird\\\x1b"`, `iface = "we\"ird\\\x1b"`, "7"},
		{`iface == "café"`, `iface = "café"`, ""},
		{`iface in {"lo"} and ifIdx < 3 or iface == "eth0"`, `(iface = "lo" and ifIdx < 3) or iface = "eth0"`, "1 2"},
		{`(iface == "lo"? ifIdx == 1: iface == "eth0")`, `(iface = "lo"? ifIdx = 1: iface = "eth0")`, "1 2"},
	} {
		for _, layer := range []packet.Layer{packet.LayerNetwork, packet.LayerForward} {
			p, again := formatted(t, row.filter, layer, row.format)
			for _, p := range []*Program{p, again} {
				p, err := p.WithInterfaces(func(name string) uint32 { return indexes[name] })
				ok(t, err)
				var got []string
				for _, i := range []uint32{1, 2, 3, 7} {
					a := packet.Address{Layer: layer}
					a.SetNetwork(packet.NetworkData{IfIdx: i})
					if p.Match(itemUDP4, &a) {
						got = append(got, fmt.Sprint(i))
					}
				}
				if got := strings.Join(got, " "); got != row.matches {
					t.Errorf("%s at %v matches %q, want %q", p, layer, got, row.matches)
				}
			}
			if object, err := p.Object(); err == nil || !strings.Contains(err.Error(), "interface") {
				t.Errorf("%s has the object string %q, %v", row.filter, object, err)
			}
			if names := p.Sets(); names != nil || p.Set("eth0") != nil {
				t.Errorf("%s has the named sets %v", row.filter, names)
			}
		}
	}
}

// TestInterfacesOfPrograms: each user of a program has its own view of the interfaces.
func TestInterfacesOfPrograms(t *testing.T) {
	p, err := Compile(`iface == "b" or iface == "a" or iface == "b" or remoteAddr in @b`, packet.LayerNetwork, Extended)
	ok(t, err)
	if got := fmt.Sprint(p.Interfaces(), p.Sets()); got != "[b a] [b]" {
		t.Errorf("it asks for %s", got)
	}
	two, err := p.WithInterfaces(func(string) uint32 { return 2 })
	ok(t, err)
	var a packet.Address
	a.SetNetwork(packet.NetworkData{IfIdx: 2})
	if p.Match(itemUDP4, &a) || !two.Match(itemUDP4, &a) {
		t.Error("the interfaces of one program became those of the other")
	}
	if two.Set("b") != p.Set("b") {
		t.Error("it has another set @b")
	}
}

// TestProcessNames checks which events match.
func TestProcessNames(t *testing.T) {
	for _, row := range []struct {
		filter  string
		format  string
		matches string // the names that match
	}{
		{`process == "curl"`, `process = "curl"`, "curl"},
		{`process != "curl"`, `process != "curl"`, "| curl-config|fifteen byte ok|x"},
		{`process in {"x", "curl"}`, `process in {"curl", "x"}`, "curl|x"},
		{`process not in {"x", "curl"}`, `process not in {"curl", "x"}`, "| curl-config|fifteen byte ok"},
		{`process in {"curl"}`, `process = "curl"`, "curl"},
		{`not process in {"curl"}`, `process != "curl"`, "| curl-config|fifteen byte ok|x"},
		{`process == "fifteen byte ok"`, `process = "fifteen byte ok"`, "fifteen byte ok"},
		{`process == "a" or process == "b" or process == "c" or process == "x" or process == "curl"`, `process = "a" or process = "b" or process = "c" or process = "x" or process = "curl"`, "curl|x"},
	} {
		for _, layer := range []packet.Layer{packet.LayerFlow, packet.LayerSocket} {
			p, again := formatted(t, row.filter, layer, row.format)
			for _, p := range []*Program{p, again} {
				var got []string
				for _, name := range []string{"", "curl", " curl-config", "fifteen byte ok", "x"} {
					a := packet.Address{Layer: layer}
					var b [packet.ProcessNameSize]byte
					copy(b[:], name)
					a.SetProcessName(b)
					if p.Match(nil, &a) {
						got = append(got, name)
					}
				}
				if got := strings.Join(got, "|"); got != row.matches {
					t.Errorf("%s at %v matches %q, want %q", p, layer, got, row.matches)
				}
			}
			if object, err := p.Object(); err == nil || !strings.Contains(err.Error(), "process") {
				t.Errorf("%s has the object string %q, %v", row.filter, object, err)
			}
		}
	}
	a := packet.Address{Layer: packet.LayerFlow}
	a.SetProcessName([packet.ProcessNameSize]byte{'x'})
	p, err := Compile(`process == "x"`, packet.LayerFlow, Extended)
	ok(t, err)
	if n := testing.AllocsPerRun(100, func() { p.Match(nil, &a) }); n != 0 {
		t.Errorf("a match allocates %v times", n)
	}
	steps, matched, err := p.Explain(nil, &a)
	if err != nil || !matched || len(steps) != 1 || steps[0].Value != `"x"` {
		t.Errorf("explained as %v, %v, %v", steps, matched, err)
	}
	p, err = Compile(`process == "x"`, packet.LayerNetwork, Extended)
	ok(t, err)
	if _, err := p.Eval(itemUDP4, &packet.Address{}); !errors.Is(err, ErrNoValue) {
		t.Errorf("the process of a packet: %v, want ErrNoValue", err)
	}
}

// TestNameErrors checks the errors about names and their hints.
func TestNameErrors(t *testing.T) {
	for _, row := range []struct {
		filter string
		layer  packet.Layer
		kind   ErrorKind
		token  string
		hint   string
	}{
		{`iface == eth0`, packet.LayerNetwork, ErrBadToken, "eth0", `write iface == "eth0"; in a shell`},
		{`iface == 'eth0'`, packet.LayerNetwork, ErrBadToken, "'", `write iface == "eth0"; in a shell`},
		{`iface == tcp`, packet.LayerNetwork, ErrUnexpectedToken, "tcp", `write iface == "tcp"`},
		{`iface == 3`, packet.LayerNetwork, ErrUnexpectedToken, "3", `ifIdx == 3`},
		{`process == 4711`, packet.LayerNetwork, ErrUnexpectedToken, "4711", `processId == 4711`},
		{`process == curl`, packet.LayerFlow, ErrBadToken, "curl", `write process == "curl"`},
		{`iface eth0`, packet.LayerNetwork, ErrBadToken, "eth0", `write iface == "eth0"`},
		{`iface "eth0"`, packet.LayerNetwork, ErrUnexpectedToken, `"eth0"`, `write iface == "eth0"`},
		{`iface`, packet.LayerNetwork, ErrUnexpectedToken, "", `iface == "eth0"`},
		{`process and tcp`, packet.LayerNetwork, ErrUnexpectedToken, "and", `process == "curl"`},
		{`iface ==`, packet.LayerNetwork, ErrUnexpectedToken, "", `iface == "eth0"`},
		{`iface < "a"`, packet.LayerNetwork, ErrUnexpectedToken, "<", `==`},
		{`iface not tcp`, packet.LayerNetwork, ErrUnexpectedToken, "not", ""},
		{`iface in {eth0}`, packet.LayerNetwork, ErrBadToken, "eth0", `write iface in {"eth0", …}`},
		{`iface in eth0`, packet.LayerNetwork, ErrBadToken, "eth0", `iface in {"eth0", …}`},
		{`iface in "eth0"`, packet.LayerNetwork, ErrUnexpectedToken, `"eth0"`, `iface in {"eth0", …}`},
		{`iface in {}`, packet.LayerNetwork, ErrUnexpectedToken, "}", `iface == "eth0"`},
		{`iface in {"a" "b"}`, packet.LayerNetwork, ErrUnexpectedToken, `"b"`, ""},
		{`iface in @wan`, packet.LayerNetwork, ErrBadSet, "iface in @wan", `iface in {…}`},
		{`process not in @p`, packet.LayerFlow, ErrBadSet, "process not in @p", `process in {…}`},
		{`iface == ""`, packet.LayerNetwork, ErrOutOfRange, `""`, ""},
		{`process == ""`, packet.LayerFlow, ErrOutOfRange, `""`, "processId == 0"},
		{`iface == "` + strings.Repeat("x", 128) + `"`, packet.LayerNetwork, ErrOutOfRange, `"` + strings.Repeat("x", 128) + `"`, "15 bytes, alternative ones 127"},
		{`iface == "a/b"`, packet.LayerNetwork, ErrOutOfRange, `"a/b"`, "slash"},
		{`iface == "a b"`, packet.LayerNetwork, ErrOutOfRange, `"a b"`, "white space"},
		{`process == "/usr/bin/curl"`, packet.LayerFlow, ErrOutOfRange, `"/usr/bin/curl"`, `process == "curl"`},
		{`process == "chromium-browser"`, packet.LayerFlow, ErrOutOfRange, `"chromium-browser"`, `process == "chromium-browse"`},
		{`process == "a\x00"`, packet.LayerFlow, ErrOutOfRange, `"a\x00"`, "zero"},
		{`iface == "eth0`, packet.LayerNetwork, ErrBadToken, `"eth0`, "between quotes"},
		{`iface == "a\q"`, packet.LayerNetwork, ErrBadToken, `\q`, `\x1b`},
		{`iface == "a\`, packet.LayerNetwork, ErrBadToken, `\`, `\x1b`},
		{`iface == "\xg0"`, packet.LayerNetwork, ErrBadToken, `\x`, `\x1b`},
		{`"eth0"`, packet.LayerNetwork, ErrUnexpectedToken, `"eth0"`, `iface == "eth0"`},
		{`tcp.DstPort == "http"`, packet.LayerNetwork, ErrUnexpectedToken, `"http"`, "iface and process"},
		{`tcp.DstPort in {"http"}`, packet.LayerNetwork, ErrUnexpectedToken, `"http"`, ""},
		{`iface == "eth0" "lo"`, packet.LayerNetwork, ErrUnexpectedToken, `"lo"`, ""},
		{`iface == "eth0"`, packet.LayerFlow, ErrBadTokenForLayer, "iface", "NETWORK, NETWORK_FORWARD"},
		{`process == "curl"`, packet.LayerForward, ErrBadTokenForLayer, "process", "belong to no process"},
		{`process == "curl"`, packet.LayerReflect, ErrBadTokenForLayer, "process", "FLOW, SOCKET"},
	} {
		_, err := Compile(row.filter, row.layer, Extended)
		var e *Error
		if !errors.As(err, &e) || e.Kind != row.kind || e.Token != row.token || !strings.Contains(e.Hint, row.hint) {
			t.Errorf("%s: %#v, want kind %v at %q with the hint %q", row.filter, err, row.kind, row.token, row.hint)
		}
	}
	for _, text := range []string{`iface == "eth0"`, `process == "curl"`} {
		var e *Error
		if _, err := Compile(text, packet.LayerNetwork, Strict); !errors.As(err, &e) || !strings.Contains(e.Hint, "extended") {
			t.Errorf("%s in the strict dialect: %v", text, err)
		}
	}
}

// TestBuildNames: conditions on names built in Go print as they are written.
func TestBuildNames(t *testing.T) {
	for _, row := range []struct {
		built Condition
		text  string
	}{
		{Interface.Eq("eth0"), `iface = "eth0"`},
		{Interface.Ne("eth0"), `iface != "eth0"`},
		{Interface.In("b", "a", "b"), `iface = "a" or iface = "b"`},
		{Interface.In("b", "a").Not(), `(iface = "a" or iface = "b"? false: true)`},
		{Interface.In(), "false"},
		{Process.Eq("curl"), `process = "curl"`},
		{Process.Ne("curl"), `process != "curl"`},
		{Process.In("wget", "curl").And(TCP), `process in {"curl", "wget"} and tcp`},
	} {
		p, err := conditionOf(row.built).Compile(packet.LayerNetwork)
		ok(t, err)
		if text := p.String(); text != row.text && !(row.text == "false" && !p.Match(itemUDP4, &packet.Address{})) {
			t.Errorf("built %s, want %s", text, row.text)
		}
	}
	for _, wrong := range []Condition{Interface.Eq(""), Interface.Ne("a/b"), Process.In("curl", "/bin/sh"), Name(IfIdx).Eq("a")} {
		if _, err := conditionOf(wrong).Compile(packet.LayerNetwork); err == nil {
			t.Errorf("%v compiles", wrong)
		}
	}
	// Two programs of one expression keep their interfaces apart.
	e := Interface.Eq("a").Or(TCP.And(Interface.Ne("a")))
	one, err := e.Compile(packet.LayerNetwork)
	ok(t, err)
	two, err := e.Compile(packet.LayerNetwork)
	ok(t, err)
	if one.program().Interfaces()[0].Members == two.program().Interfaces()[0].Members {
		t.Error("the programs share their interfaces")
	}
}
