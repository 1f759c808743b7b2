package windows

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/internal/vectors"
	"github.com/opendivert/divert/packet"
)

// unhex returns bytes written in hex with spaces.
func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRecords compares the request records with the layouts of the specification (windows-driver.md 4.1).
func TestRecords(t *testing.T) {
	for _, row := range []struct {
		name string
		set  func(r *record)
		want string
	}{
		{"INITIALIZE", func(r *record) { r.initialize(packet.LayerSocket, 0, engine.FlagRecvOnly) },
			"03000000 30750000 04000000 00000000"},
		{"INITIALIZE, lowest priority", func(r *record) { r.initialize(packet.LayerNetwork, -30000, 0x3F) },
			"00000000 00000000 3f000000 00000000"},
		{"INITIALIZE, highest priority", func(r *record) { r.initialize(packet.LayerReflect, 30000, 5) },
			"04000000 60ea0000 05000000 00000000"},
		{"STARTUP", func(r *record) { r.startup(0x3EC0) }, "c03e0000 00000000 00000000 00000000"},
		{"RECV", func(r *record) { r.recv(0x12345678, 0x9ABCDEF0) }, "78563412 00000000 f0debc9a 00000000"},
		{"SEND", func(r *record) { r.send(0x12345678, 20400) }, "78563412 00000000 b04f0000 00000000"},
		{"SHUTDOWN", func(r *record) { r.shutdown(engine.ShutdownBoth) }, "03000000 00000000 00000000 00000000"},
		{"SET_PARAM", func(r *record) { r.setParam(paramQueueSize, 33554432) }, "00000002 00000000 02000000 00000000"},
		{"GET_PARAM", func(r *record) { r.getParam(4) }, "04000000 00000000 00000000 00000000"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var r record
			for i := range r {
				r[i] = 0xEE // left from the previous request
			}
			row.set(&r)
			if want := unhex(t, row.want); !bytes.Equal(r[:], want) {
				t.Errorf("%x, want %x", r, want)
			}
		})
	}
}

// TestControlCodes composes the codes from their parts (windows-driver.md 4).
func TestControlCodes(t *testing.T) {
	const deviceType, read, write, inDirect, outDirect = 0x12, 1, 2, 1, 2
	for _, row := range []struct {
		name                           string
		code, access, function, method uint32
	}{
		{"INITIALIZE", codeInitialize, read | write, 0x921, outDirect},
		{"STARTUP", codeStartup, read | write, 0x922, inDirect},
		{"RECV", codeRecv, read, 0x923, outDirect},
		{"SEND", codeSend, read | write, 0x924, inDirect},
		{"SET_PARAM", codeSetParam, read | write, 0x925, inDirect},
		{"GET_PARAM", codeGetParam, read, 0x926, outDirect},
		{"SHUTDOWN", codeShutdown, read | write, 0x927, inDirect},
	} {
		if want := deviceType<<16 | row.access<<14 | row.function<<2 | row.method; row.code != want {
			t.Errorf("%s is %#x, want %#x", row.name, row.code, want)
		}
	}
}

func TestVersionRecord(t *testing.T) {
	var v versionRecord
	v[40] = 1 // left from before
	v.offer(32)
	want := append([]byte("$WdivDLL"), 2, 0, 0, 0, 2, 0, 0, 0, 32)
	want = append(want, make([]byte, versionSize-len(want))...)
	if !bytes.Equal(v[:], want) {
		t.Errorf("offer %x, want %x", v, want)
	}
	if err := v.check(); !errors.Is(err, errForeignDriver) {
		t.Errorf("an echo passes for an answer: %v", err)
	}
	copy(v[:], "#WdivSYS")
	if err := v.check(); err != nil || v.String() != "2.2, 32-bit" {
		t.Errorf("%v, %v", &v, err)
	}
	v[8] = 1
	if err := v.check(); !errors.Is(err, errForeignDriver) {
		t.Errorf("version 1: %v", err)
	}
}

// object reads an object string without package filter (specification: filter-object.md 4), and returns its instructions
// in their binary form.
type object struct {
	rest string
}

const objectDigits = "0123456789ABCDEFGHIJKLMNOPQRSTUV" // all but the last of a number
const objectEnds = "WXYZabcdefghijklmnopqrstuvwxyz+="   // the last

func (o *object) number() (n uint64) {
	for {
		c := o.rest[0]
		o.rest = o.rest[1:]
		if end := strings.IndexByte(objectEnds, c); end >= 0 {
			return n<<5 | uint64(end)
		}
		n = n<<5 | uint64(strings.IndexByte(objectDigits, c))
	}
}

func (o *object) target() uint16 {
	c := o.rest[0]
	o.rest = o.rest[1:]
	switch c {
	case 'A':
		return 0x7FFE
	case 'X':
		return 0x7FFF
	}
	return uint16(o.number())
}

func (o *object) instruction() []byte {
	o.rest = strings.TrimPrefix(o.rest, "_")
	field, op, neg := o.number(), o.number(), o.number()
	args := [4]uint32{uint32(o.number())}
	switch {
	case field == 28 || field == 29 || field == 61 || field == 62:
		args[1], args[2], args[3] = uint32(o.number()), uint32(o.number()), uint32(o.number())
	case field == 66 || field == 67 || field == 81:
		args[1] = uint32(o.number())
	case field >= 71 && field <= 79:
		args[1] = uint32(int32(o.number()) - 65535)
	case field == 21 || field == 22:
		args[1] = 0xFFFF
	}
	le := binary.LittleEndian
	b := le.AppendUint16(nil, uint16(field|op<<11))
	b = le.AppendUint16(b, o.target())
	b = le.AppendUint32(b, uint32(o.target())|uint32(neg)<<16)
	for _, arg := range args {
		b = le.AppendUint32(b, arg)
	}
	return b
}

// TestUpload uploads the filters of the vectors: the instructions equal those in the object strings of the original's
// compiler.
func TestUpload(t *testing.T) {
	type row struct {
		Layer          vectors.Layer
		Filter, Object string
		OK             bool
	}
	uploaded, refused := 0, 0
	vectors.Run(t, "compile", func(r row) error {
		if !r.OK {
			return nil
		}
		layer := packet.Layer(r.Layer)
		p, err := progtest.Compile(r.Filter, layer, filter.Strict)
		if err != nil {
			return err
		}
		seen := bytes.Clone
		pl, err := planFor(&engine.Config{Program: p, Flags: mandatory[layer]}, p)
		if err != nil {
			// The original's driver refuses these too (api.md 5.1). It would get the same instructions.
			if !errors.Is(err, engine.ErrInvalid) || p.DriverCheck() == nil {
				return err
			}
			refused++
			seen = visible
			pl = &plan{hints: uint64(p.Hints())}
			if pl.instructions, err = p.AppendInstructions(nil); err != nil {
				return err
			}
		} else {
			uploaded++
		}
		if pl.judged || pl.hints != uint64(p.Hints()) {
			return fmt.Errorf("judged %v, hints %#x", pl.judged, pl.hints)
		}
		if r.Object == "@WinDiv_WW" { // quirk: 256 instructions have no object
			return nil
		}
		o := object{strings.TrimPrefix(r.Object, "@WinDiv_")}
		if version := o.number(); version != 0 {
			return fmt.Errorf("version %d", version)
		}
		var want []byte
		for range o.number() {
			want = append(want, o.instruction()...)
		}
		if got := seen(pl.instructions); !bytes.Equal(got, seen(want)) || o.rest != "" {
			return fmt.Errorf("uploaded\n%x, want\n%x", got, want)
		}
		return nil
	})
	if uploaded < 500 {
		t.Errorf("only %d uploaded, %d refused", uploaded, refused)
	}
	t.Logf("%d uploaded, %d refused as by the driver", uploaded, refused)
}

// visible clears the parts of each instruction that an object string does not carry: the upper words of the literals of
// 32-bit and index fields (filter-object.md 4.3). The driver accepts only zeros there.
func visible(instructions []byte) []byte {
	out := bytes.Clone(instructions)
	for b := out; len(b) >= 24; b = b[24:] {
		switch field := binary.LittleEndian.Uint16(b) & 0x7FF; {
		case field == 28 || field == 29 || field == 61 || field == 62 || field == 21 || field == 22:
		case field == 66 || field == 67 || field == 81 || field >= 71 && field <= 79:
			clear(b[16:24])
		default:
			clear(b[12:24])
		}
	}
	return out
}

// mandatory holds the flags that each layer requires (specification: api.md 4).
var mandatory = [packet.NumLayers]uint64{
	packet.LayerFlow:    engine.FlagSniff | engine.FlagRecvOnly,
	packet.LayerSocket:  engine.FlagRecvOnly,
	packet.LayerReflect: engine.FlagSniff | engine.FlagRecvOnly,
}

// TestUploadGolden checks a whole upload, byte by byte (filter-object.md 1).
func TestUploadGolden(t *testing.T) {
	p, err := progtest.Compile("outbound and (tcp.DstPort == 80 or ip.SrcAddr != 10.0.0.1) and packet16[-2] > 7", packet.LayerNetwork, filter.Strict)
	if err != nil {
		t.Fatal(err)
	}
	pl, err := planFor(&engine.Config{Program: p}, p)
	if err != nil {
		t.Fatal(err)
	}
	want := unhex(t, ""+
		"0208 0100 ff7f0000 00000000 00000000 00000000 00000000"+ // outbound != 0 ? 1 : reject
		"2700 0300 02000000 50000000 00000000 00000000 00000000"+ // tcp.DstPort == 80 ? 3 : 2
		"1508 0300 ff7f0000 0100000a ffff0000 00000000 00000000"+ // ip.SrcAddr != 10.0.0.1 ? 3 : reject
		"4820 fe7f ff7f0000 07000000 fcffffff 00000000 00000000") // packet16[-4b] > 7 ? accept : reject
	if !bytes.Equal(pl.instructions, want) {
		t.Errorf("\n%x, want\n%x", pl.instructions, want)
	}
	if pl.hints != uint64(prog.HintOutbound|prog.HintIP|prog.HintIPv6) {
		t.Errorf("hints %#x", pl.hints)
	}
}

func TestDriverFile(t *testing.T) {
	for _, row := range []struct {
		arch  string
		wow64 bool
		want  string
	}{
		{"amd64", false, "WinDivert64.sys"},
		{"386", true, "WinDivert64.sys"},
		{"386", false, "WinDivert32.sys"},
		{"arm64", false, ""},
		{"arm", false, ""},
	} {
		got, err := driverFile(row.arch, row.wow64)
		if got != row.want || (err != nil) != (row.want == "") {
			t.Errorf("%s, WOW64 %v: %q, %v", row.arch, row.wow64, got, err)
		}
		if err != nil && (!errors.Is(err, engine.ErrNotSupported) || !strings.Contains(err.Error(), "no signed driver")) {
			t.Errorf("%s: %v", row.arch, err)
		}
	}
}

func TestErrorText(t *testing.T) {
	for _, row := range []struct {
		code uint32
		is   error
		text string
	}{
		{2, os.ErrNotExist, "WithDriver"},
		{3, os.ErrNotExist, "divert clean"},
		{5, os.ErrPermission, "Administrator"},
		{5, os.ErrPermission, "virus scanner"},
		{22, net.ErrClosed, "22"},
		{87, engine.ErrInvalid, "87"},
		{122, engine.ErrShortBuffer, ""},
		{193, engine.ErrNotSupported, "another processor"},
		{232, engine.ErrShutdown, ""},
		{225, engine.ErrNotSupported, "exempt"},
		{577, engine.ErrNotSupported, "signature"},
		{654, engine.ErrNotSupported, "another version"},
		{1058, engine.ErrNotSupported, "disabled"},
		{1058, engine.ErrNotSupported, "while handles were open"},
		{1060, engine.ErrNotSupported, "NoInstall"},
		{1072, engine.ErrNotSupported, "deleted"},
		{1232, engine.ErrHopLimit, ""},
		{1275, engine.ErrNotSupported, "block"},
		{1753, engine.ErrNotSupported, "Base Filtering Engine"},
		{1808, engine.ErrNotSupported, "WinDivert 1"},
		{4551, engine.ErrNotSupported, "Smart App Control"},
		{0x800B010C, engine.ErrNotSupported, "revoked"},
	} {
		err := error(&Error{Op: "open the device", Code: row.code, detail: "details"})
		text := err.Error()
		if !errors.Is(err, row.is) || !strings.Contains(text, row.text) || !strings.HasPrefix(text, "open the device: Windows error ") ||
			!strings.Contains(text, "details") {
			t.Errorf("%d: %v", row.code, err)
		}
	}
	for code, c := range causes { // in PowerShell 5.1, sc is another command
		if strings.Contains(c.remedy, `"sc `) {
			t.Errorf("%d: %s", code, c.remedy)
		}
	}
	if err := (&Error{Op: "send", Code: 4711}); err.Error() != "send: Windows error 4711" || len(err.Unwrap()) != 0 {
		t.Errorf("an unknown number: %v", err)
	}
}

func TestPlan(t *testing.T) {
	for _, row := range []struct {
		name, filter string
		layer        packet.Layer
		dialect      filter.Dialect
		cfg          engine.Config
		judged       bool
		flags        uint64 // for the driver
		err          error
	}{
		{name: "the driver decides", filter: "tcp", judged: false},
		{name: "the interpreter is asked for", filter: "tcp", cfg: engine.Config{Mode: engine.ModeInterpret}, judged: true},
		{name: "the interpreter is asked for, but nothing can go back", filter: "tcp",
			cfg: engine.Config{Mode: engine.ModeInterpret, Flags: engine.FlagDrop}, flags: engine.FlagDrop},
		{name: "the true flow label", filter: "ipv6.FlowLabel == 1", judged: true},
		{name: "the flow label of the original", filter: "ipv6.FlowLabel == 1", dialect: filter.Strict},
		{name: "what does not match must go back", filter: "ipv6.FlowLabel == 1", cfg: engine.Config{Flags: engine.FlagRecvOnly}, judged: true},
		{name: "copies need not go back", filter: "ipv6.FlowLabel == 1",
			cfg:    engine.Config{Flags: engine.FlagSniff | engine.FlagRecvOnly},
			judged: true, flags: engine.FlagSniff | engine.FlagRecvOnly},
		{name: "families of events", filter: "ipv6 and tcp", layer: packet.LayerFlow,
			cfg: engine.Config{Flags: engine.FlagSniff | engine.FlagRecvOnly}, flags: engine.FlagSniff | engine.FlagRecvOnly},
		{name: "too many tests in the strict dialect", filter: "tcp" + strings.Repeat(" and tcp", 255), dialect: filter.Strict, err: engine.ErrInvalid},
		{name: "a literal that the driver refuses, strict", filter: "ip.TOS == 300", dialect: filter.Strict, err: engine.ErrInvalid},
		{name: "too many tests to drop", filter: "tcp" + strings.Repeat(" and tcp", 255), cfg: engine.Config{Flags: engine.FlagDrop}, err: engine.ErrNotSupported},
		{name: "fail-open", filter: "tcp", cfg: engine.Config{FailOpen: true}, err: engine.ErrNotSupported},
		{name: "fail-open of copies", filter: "tcp", cfg: engine.Config{FailOpen: true, Flags: engine.FlagSniff}, flags: engine.FlagSniff},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := progtest.Compile(row.filter, row.layer, row.dialect)
			if err != nil {
				t.Fatal(err)
			}
			row.cfg.Program = p
			pl, err := planFor(&row.cfg, p)
			if row.err != nil {
				if !errors.Is(err, row.err) {
					t.Errorf("error %v, want %v", err, row.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if pl.judged != row.judged || pl.flags != row.flags {
				t.Errorf("judged %v, flags %#x", pl.judged, pl.flags)
			}
		})
	}
}

// TestPlanProcess refuses the process of a packet: only a program built in Go, or read from an object, can test it where
// the language has no such field.
func TestPlanProcess(t *testing.T) {
	p, err := progtest.Compile("@WinDiv_WX_1yWWXAX", packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	if p.Tests()[0].Field != prog.FieldProcessID {
		t.Fatalf("the object tests %v", p.Tests()[0].Field)
	}
	if _, err := planFor(&engine.Config{Program: p}, p); !errors.Is(err, engine.ErrNotSupported) {
		t.Errorf("error %v", err)
	}
}
