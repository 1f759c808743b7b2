//go:build linux

package capture

import (
	"encoding/hex"
	"testing"
)

// Packets of the worked examples (specification: packets.md 9.1).
const (
	tcp4 = "4500002c1c4640004006507b0a010203c0000207c000005001020304000000006002faf00ad40000020405b4"
	udp4 = "45000021beef000001112cd20a010203c000020714e90035000dd8d868656c6c6f"
	udp6 = "6000000000091140fd770000000000000000000000000001fd770000000000000000000000000002000100020009a3e661"
)

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
