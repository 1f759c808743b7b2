//go:build linux

package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/packet"
)

// TestSCTPIsDiverted: SCTP is received and, when its bytes have changed, sent on with its CRC32c, also where the kernel
// cannot finish that.
func TestSCTPIsDiverted(t *testing.T) {
	for _, mode := range []engine.Mode{engine.ModeKernel, engine.ModeInterpret} {
		for _, finishes := range []bool{true, false} {
			t.Run(fmt.Sprintf("mode %d, the kernel finishes it %v", mode, finishes), func(t *testing.T) {
				if mode == engine.ModeKernel {
					needPrograms(t)
				}
				defer kernel.FinishedSCTP.Assume(finishes)()
				divertSCTP(t, mode)
			})
		}
	}
}

func divertSCTP(t *testing.T, mode engine.Mode) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	h := openOn(t, pair.A, engine.Config{
		Program: program(t, "outbound and protocol == 132"), Mode: mode, Queues: 1,
		Limits: engine.Limits{Length: 64, Time: time.Second, Size: 1 << 20},
	})
	there, err := pair.B.ListenPacket("ip4:132", pair.B.Addr4().String())
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	from, err := pair.A.Dial(t.Context(), "ip4:132", pair.B.Addr4().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	segment := []byte{0x30, 0x39, 0x23, 0x28, 0, 0, 0, 7, 1, 2, 3, 4, 0, 3, 0, 20, 1, 2, 3, 4}
	if _, err := from.Write(segment); err != nil {
		t.Fatal(err)
	}
	ps := make([]packet.Packet, 1)
	late := make(chan struct{})
	timer := time.AfterFunc(5*time.Second, func() { close(late) })
	defer timer.Stop()
	if _, err := h.Recv(engine.Wait{Context: late}, ps); err != nil {
		t.Fatal(err)
	}
	p := &ps[0]
	if !bytes.Equal(p.Data[packet.IPv4HeaderLen:], segment) {
		t.Fatalf("received %.100x", p.Data)
	}
	p.Data[len(p.Data)-1] = 9
	p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false
	if _, err := h.Send(ps); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	there.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _, err := there.(*net.IPConn).ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(segment)
	want[len(want)-1] = 9
	binary.LittleEndian.PutUint32(want[8:], 0)
	binary.LittleEndian.PutUint32(want[8:], crc32.Checksum(want, crc32.MakeTable(crc32.Castagnoli)))
	if !bytes.Equal(buf[:n], want) {
		t.Errorf("arrived %.100x, want %x", buf[:n], want)
	}
}
