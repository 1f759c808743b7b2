// Package quictest makes the first datagrams of QUIC clients, for tests of their readers.
package quictest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"testing"

	"github.com/opendivert/divert/internal/quicinitial"
)

// Hello returns the ClientHello of a QUIC client.
func Hello(t testing.TB, name string) []byte {
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

// Part is a piece of a ClientHello.
type Part struct {
	Offset int
	Data   []byte
}

func appendVarint(b []byte, v int) []byte { return binary.BigEndian.AppendUint32(b, 1<<31|uint32(v)) }

// Initial returns a client's Initial packet with CRYPTO frames, padded to a size.
func Initial(t testing.TB, v *quicinitial.Version, id, src []byte, number uint8, size int, parts ...Part) []byte {
	t.Helper()
	k, err := quicinitial.NewKeys(v, id, "client in")
	if err != nil {
		t.Fatal(err)
	}
	var frames []byte
	for _, p := range parts {
		frames = append(frames, quicinitial.FramePing, quicinitial.FrameCrypto)
		frames = appendVarint(appendVarint(frames, p.Offset), len(p.Data))
		frames = append(frames, p.Data...)
	}
	head := 1 + 4 + 1 + len(id) + 1 + len(src) + 1 + 2 + 1 + 16
	for len(frames)+head < size {
		frames = append(frames, quicinitial.FramePadding)
	}
	return k.Seal(nil, v, id, src, number, frames)
}

// Split cuts a hello for datagrams, into pieces of at most n bytes.
func Split(hello []byte, n int) (parts []Part) {
	for at := 0; at < len(hello); at += n {
		parts = append(parts, Part{at, hello[at:min(at+n, len(hello))]})
	}
	return parts
}
