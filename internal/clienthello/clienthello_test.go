package clienthello

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
)

// captured returns the first flight of a client of crypto/tls.
func captured(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		tls.Client(client, config).Handshake() // fails: there is no server
		client.Close()
	}()
	var header [5]byte
	if _, err := io.ReadFull(server, header[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint16(header[3:]))
	if _, err := io.ReadFull(server, b); err != nil {
		t.Fatal(err)
	}
	server.Close()
	return append(header[:], b...)
}

// cut cuts the one record of b into records of n bytes.
func cut(b []byte, n int) (records []byte) {
	for body := b[5:]; len(body) > 0; {
		m := min(n, len(body))
		records = append(records, 22, 3, 1, byte(m>>8), byte(m))
		records = append(records, body[:m]...)
		body = body[m:]
	}
	return records
}

type extension struct {
	kind uint16
	data []byte
}

// hello builds a ClientHello in one record.
func hello(extensions ...extension) []byte {
	var all []byte
	for _, e := range extensions {
		all = binary.BigEndian.AppendUint16(all, e.kind)
		all = binary.BigEndian.AppendUint16(all, uint16(len(e.data)))
		all = append(all, e.data...)
	}
	b := append([]byte{3, 3}, make([]byte, 32)...)
	b = append(b, 0, 0, 2, 0x13, 0x01, 1, 0)
	if extensions != nil {
		b = binary.BigEndian.AppendUint16(b, uint16(len(all)))
		b = append(b, all...)
	}
	b = append([]byte{1, 0, byte(len(b) >> 8), byte(len(b))}, b...)
	return append([]byte{22, 3, 1, byte(len(b) >> 8), byte(len(b))}, b...)
}

// names is the extension server_name with the given names.
func names(names ...string) extension {
	var list []byte
	for _, name := range names {
		list = append(list, 0)
		list = binary.BigEndian.AppendUint16(list, uint16(len(name)))
		list = append(list, name...)
	}
	return extension{0, append(binary.BigEndian.AppendUint16(nil, uint16(len(list))), list...)}
}

func TestRecords(t *testing.T) {
	ech := extension{0xfe0d, []byte{0, 0, 1, 0, 1, 7}}
	padding := extension{21, make([]byte, 30000)}
	whole := hello(names("a.example"))
	long := bytes.Clone(whole)
	long[6] = 1 // the message's length becomes more than 65,536
	other := bytes.Clone(whole)
	other[5] = 2
	for _, tt := range []struct {
		name string
		in   []byte
		want Hello
	}{
		{"a client of Go, with post-quantum keys", captured(t, &tls.Config{ServerName: "www.example.com"}),
			Hello{Named, "www.example.com", false, false}},
		{"a client of Go, TLS 1.2", captured(t, &tls.Config{ServerName: "www.example.com", MaxVersion: tls.VersionTLS12}),
			Hello{Named, "www.example.com", false, false}},
		{"a client of Go, an address", captured(t, &tls.Config{ServerName: "192.0.2.1"}), Hello{NoName, "", false, false}},
		{"records of one byte", cut(whole, 1), Hello{Named, "a.example", false, false}},
		{"two long records", cut(hello(padding, names("a.example"))[:], 1<<14), Hello{Named, "a.example", false, false}},
		{"capitals and a final dot", hello(names("WWW.Example.COM.")), Hello{Named, "www.example.com", false, false}},
		{"bytes after the hello", append(bytes.Clone(whole), 0, 1, 2), Hello{Named, "a.example", false, false}},
		{"encrypted hello behind the name", hello(names("outer.example"), ech), Hello{Named, "outer.example", true, false}},
		{"encrypted hello alone", hello(ech), Hello{NoName, "", true, false}},
		{"early data", hello(names("a.example"), extension{extensionEarlyData, nil}), Hello{Named, "a.example", false, true}},
		{"no extensions at all", hello(), Hello{NoName, "", false, false}},
		{"an empty list of extensions", hello([]extension{}...), Hello{NoName, "", false, false}},
		{"nothing", nil, Hello{}},
		{"all but one byte", whole[:len(whole)-1], Hello{}},
		{"HTTP", []byte("GET / HTTP/1.1\r\n"), Hello{State: NotTLS}},
		{"SSH", []byte("SSH-2.0-OpenSSH_9.9\r\n"), Hello{State: NotTLS}},
		{"SSL 2", []byte{0x80, 46, 1, 3, 1}, Hello{State: NotTLS}},
		{"an alert", []byte{21, 3, 1, 0, 2, 2, 40}, Hello{State: NotTLS}},
		{"another version", []byte{22, 4}, Hello{State: NotTLS}},
		{"an empty record", []byte{22, 3, 1, 0, 0}, Hello{State: NotTLS}},
		{"a record too long", []byte{22, 3, 1, 0x40, 1}, Hello{State: NotTLS}},
		{"a ServerHello", other, Hello{State: NotTLS}},
		{"a message too long", long, Hello{State: NotTLS}},
		{"two extensions of names", hello(names("a.example"), names("b.example")), Hello{State: NotTLS}},
		{"two names in one", hello(names("a.example", "b.example")), Hello{State: NotTLS}},
		{"no name in the list", hello(names()), Hello{State: NotTLS}},
		{"an empty name", hello(names("")), Hello{State: NotTLS}},
		{"only a dot", hello(names(".")), Hello{Named, ".", false, false}},
		{"a name with a NUL", hello(names("a.example\x00.b.example")), Hello{State: NotTLS}},
		{"a name with a space", hello(names("a example")), Hello{State: NotTLS}},
		{"a name that is too long", hello(names(strings.Repeat("a", 256))), Hello{State: NotTLS}},
		{"a list shorter than its length", hello(extension{0, []byte{0, 9, 0, 0, 1, 'a'}}), Hello{State: NotTLS}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Records(tt.in); got != tt.want {
				t.Errorf("at once: %+v, want %+v", got, tt.want)
			}
			var r Reader
			var got Hello
			for i := range tt.in {
				got = r.Read(tt.in[i : i+1])
			}
			if got != tt.want {
				t.Errorf("byte by byte: %+v, want %+v", got, tt.want)
			}
			r.Reset()
			if got := r.Read(tt.in); got != tt.want {
				t.Errorf("with a reader used before: %+v, want %+v", got, tt.want)
			}
		})
	}
}

// A complete hello cut anywhere asks for more, and false lengths in it are never followed.
func TestEveryPrefix(t *testing.T) {
	whole := hello(extension{43, []byte{2, 3, 4}}, names("a.example"), extension{0xfe0d, nil})
	for n := range whole {
		if got := Records(whole[:n]); got.State != NeedMore {
			t.Errorf("%d of %d bytes: %+v", n, len(whole), got)
		}
	}
	for i := 9; i < len(whole); i++ {
		for _, c := range []byte{0, 1, 0x7f, 0xff} {
			b := bytes.Clone(whole)
			b[i] = c
			Records(b) // must not panic
		}
	}
}

func FuzzRecords(f *testing.F) {
	whole := hello(names("a.example"), extension{0xfe0d, nil})
	f.Add(whole, uint8(1))
	f.Add(cut(whole, 7), uint8(3))
	f.Add(hello(names("a.example", "b.example")), uint8(11))
	f.Add([]byte("GET / HTTP/1.1\r\n"), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		want := Records(b)
		if (want.State == Named) != (want.Name != "") || len(want.Name) > 255 {
			t.Fatalf("%+v", want)
		}
		var r Reader
		var got Hello
		for rest := b; len(rest) > 0; {
			n := min(int(step)+1, len(rest))
			got = r.Read(rest[:n])
			rest = rest[n:]
		}
		if got != want {
			t.Fatalf("in pieces %+v, at once %+v", got, want)
		}
		Message(b)
	})
}

func BenchmarkReader(b *testing.B) {
	whole := captured(b, &tls.Config{ServerName: "www.example.com"})
	b.SetBytes(int64(len(whole)))
	b.ReportAllocs()
	var r Reader
	for b.Loop() {
		r.Reset()
		if h := r.Read(whole); h.State != Named {
			b.Fatal(h)
		}
	}
}
