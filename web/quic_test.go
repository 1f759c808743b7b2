package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"slices"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestInitialKeys: the keys of RFC 9001 appendix A.1 and RFC 9369 appendix A.1, by what they make of a nonce and of a block.
func TestInitialKeys(t *testing.T) {
	id := unhex(t, "8394c8f03e515708")
	for _, c := range []struct {
		version uint32
		side    string
		iv      string
	}{
		{1, "client in", "fa044b2f42a3fd3b46fb255c"},
		{1, "server in", "0ac1493ca1905853b0bba03e"},
		{0x6b3343cf, "client in", "91f73e2351d8fa91660e909f"},
		{0x6b3343cf, "server in", "dd13c276499c0249d3310652"},
	} {
		k, err := newInitialKeys(versionOf(c.version), id, c.side)
		if err != nil || !bytes.Equal(k.iv[:], unhex(t, c.iv)) {
			t.Errorf("version %#x, %s: %x, %v", c.version, c.side, k.iv, err)
		}
	}
}

// clientMask is the mask of header protection in RFC 9001 appendix A.2, with its sample.
func TestHeaderProtection(t *testing.T) {
	k, err := newInitialKeys(versionOf(1), unhex(t, "8394c8f03e515708"), "client in")
	if err != nil {
		t.Fatal(err)
	}
	var mask [16]byte
	k.hp.Encrypt(mask[:], unhex(t, "d1b1c98dd7689fb8ec11d242b123dc9b"))
	if !bytes.Equal(mask[:5], unhex(t, "437b9aec36")) {
		t.Errorf("mask %x", mask[:5])
	}
}

// quicHello returns the ClientHello of a QUIC client.
func quicHello(t testing.TB, name string) []byte {
	t.Helper()
	c := tls.QUICClient(&tls.QUICConfig{TLSConfig: &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}})
	c.SetTransportParameters([]byte{})
	if err := c.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for {
		switch e := c.NextEvent(); e.Kind {
		case tls.QUICWriteData:
			return bytes.Clone(e.Data)
		case tls.QUICNoEvent:
			t.Fatal("no hello")
		}
	}
}

// part is a piece of a ClientHello.
type part struct {
	offset int
	data   []byte
}

func appendVarint(b []byte, v int) []byte { return binary.BigEndian.AppendUint32(b, 1<<31|uint32(v)) }

// initialOf returns a client's Initial packet with CRYPTO frames, padded to a size.
func initialOf(t testing.TB, v *quicVersion, id, src []byte, number uint8, size int, parts ...part) []byte {
	t.Helper()
	k, err := newInitialKeys(v, id, "client in")
	if err != nil {
		t.Fatal(err)
	}
	var frames []byte
	for _, p := range parts {
		frames = append(frames, framePing, frameCrypto)
		frames = appendVarint(appendVarint(frames, p.offset), len(p.data))
		frames = append(frames, p.data...)
	}
	head := 1 + 4 + 1 + len(id) + 1 + len(src) + 1 + 2 + 1 + 16
	for len(frames)+head < size {
		frames = append(frames, framePadding)
	}
	return k.seal(nil, v, id, src, number, frames)
}

// splitHello cuts a hello for datagrams: pieces of at most n bytes.
func splitHello(hello []byte, n int) (parts []part) {
	for at := 0; at < len(hello); at += n {
		parts = append(parts, part{at, hello[at:min(at+n, len(hello))]})
	}
	return parts
}

func TestCryptoStream(t *testing.T) {
	data := make([]byte, 3000)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for range 50 {
		var s cryptoStream
		parts := splitHello(data, 1+rand.IntN(900))
		rand.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		parts = append(parts, parts[0])
		for _, p := range parts {
			if !s.add(uint64(p.offset), p.data, maxHead) {
				t.Fatal("refused")
			}
		}
		if !bytes.Equal(s.data[:s.first], data) {
			t.Fatal("put together wrongly")
		}
		if s.add(10, []byte{data[10] + 1}, maxHead) || s.add(maxHead-1, []byte{1, 2}, maxHead) || s.add(1<<61, []byte{1}, maxHead) {
			t.Fatal("took bytes that differ or lie beyond")
		}
	}
}

func FuzzInitial(f *testing.F) {
	id := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	for i := range quicVersions {
		f.Add(initialOf(f, &quicVersions[i], id, nil, 0, 200, part{0, []byte{1, 0, 0, 4}}))
	}
	f.Add([]byte{0xC0, 0, 0, 0, 1, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		before := slices.Clone(b)
		for rest := b; len(rest) > 0; {
			h, behind, err := parseLong(rest)
			if err != nil || h.packet == nil {
				break
			}
			if len(behind) >= len(rest) {
				t.Fatal("no progress")
			}
			keys, err := newInitialKeys(h.version, h.dst, "client in")
			if err != nil {
				t.Fatal(err)
			}
			keys.open(nil, &h)
			rest = behind
		}
		var s cryptoStream
		cryptoFrames(b, func(offset uint64, data []byte) bool { return s.add(offset, data, maxHead) })
		if len(s.data) > maxHead || s.first > len(s.data) {
			t.Errorf("%d bytes kept", len(s.data))
		}
		if !bytes.Equal(b, before) {
			t.Error("the datagram has changed")
		}
	})
}

func BenchmarkInitial(b *testing.B) {
	hello := quicHello(b, "www.example.org")
	d := initialOf(b, &quicVersions[0], []byte{1, 2, 3, 4, 5, 6, 7, 8}, nil, 0, 1200, part{0, hello[:min(len(hello), 1000)]})
	for b.Loop() {
		h, _, err := parseLong(d)
		if err != nil {
			b.Fatal(err)
		}
		keys, err := newInitialKeys(h.version, h.dst, "client in")
		if err != nil {
			b.Fatal(err)
		}
		if _, ok := keys.open(nil, &h); !ok {
			b.Fatal("not opened")
		}
	}
}
