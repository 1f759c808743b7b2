package quicinitial

import (
	"bytes"
	"encoding/hex"
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

// TestInitialKeys checks the keys of RFC 9001 appendix A.1 and RFC 9369 appendix A.1, by a nonce and a block processed
// with them.
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
		k, err := NewKeys(versionOf(c.version), id, c.side)
		if err != nil || !bytes.Equal(k.iv[:], unhex(t, c.iv)) {
			t.Errorf("version %#x, %s: %x, %v", c.version, c.side, k.iv, err)
		}
	}
}

// clientMask is the mask of header protection in RFC 9001 appendix A.2, with its sample.
func TestHeaderProtection(t *testing.T) {
	k, err := NewKeys(versionOf(1), unhex(t, "8394c8f03e515708"), "client in")
	if err != nil {
		t.Fatal(err)
	}
	var mask [16]byte
	k.hp.Encrypt(mask[:], unhex(t, "d1b1c98dd7689fb8ec11d242b123dc9b"))
	if !bytes.Equal(mask[:5], unhex(t, "437b9aec36")) {
		t.Errorf("mask %x", mask[:5])
	}
}
