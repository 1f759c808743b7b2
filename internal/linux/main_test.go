//go:build linux

package linux

import (
	"encoding/hex"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/nfnl"
	"github.com/opendivert/divert/internal/linux/queue"
)

func TestMain(m *testing.M) { lab.Main(m) }

// Packets of the worked examples (specification: packets.md 9.1), and variations.
const (
	tcp4     = "4500002c1c4640004006507b0a010203c0000207c000005001020304000000006002faf00ad40000020405b4"
	udp4     = "45000021beef000001112cd20a010203c000020714e90035000dd8d868656c6c6f" // a hop limit of 1
	icmp4    = "45000020000700004001accb0a010203c0000207080033360001000261626364"
	tcp6     = "612345670017064020010db800000000000000000000000120010db800000000000000000000000201bbc350deadbeef112233445018faf0bfda000078797a"
	udp6     = "6000000000091140fd770000000000000000000000000001fd770000000000000000000000000002000100020009a3e661"
	fragment = "4500002c0001200040118cb50a010203c000020703e807d00040000030313233343536373839616263646566" // the first of a UDP datagram
)

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pairedQueue returns a queue whose socket is one of a pair: what arrives there is what there sends, and
// what it sends arrives there. The kernel and its networks are not concerned.
func pairedQueue(t testing.TB) (q *queue.Queue, there int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nfnl.NewConn(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		unix.Close(fds[1])
	})
	return &queue.Queue{Conn: conn}, fds[1]
}
