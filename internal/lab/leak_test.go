//go:build linux

package lab

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recorder is a test that records the calls to it.
type recorder struct {
	TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Cleanup(f func())          { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(f string, a ...any) { r.errors = append(r.errors, fmt.Sprintf(f, a...)) }
func (r *recorder) end() {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
}

func TestLeakCheck(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{})
	rows := []struct {
		name string
		leak func() (undo func(), err error)
		want string
	}{
		{"nothing", func() (func(), error) {
			return func() {}, talk(testContext(t), p.A, p.B, p.B.Addr4())
		}, ""},
		{"namespace descriptor", func() (func(), error) {
			f, err := p.A.NetNS()
			return func() { f.Close() }, err
		}, ": net:["},
		{"socket", func() (func(), error) {
			c, err := p.A.ListenPacket("udp", ":0")
			return func() { c.Close() }, err
		}, ": socket:["},
		{"goroutine", func() (func(), error) {
			stop := make(chan bool)
			go leakedGoroutine(stop)
			return func() { close(stop) }, nil
		}, "leakedGoroutine"},
		{"thread in a namespace", func() (func(), error) {
			stop, in := make(chan bool), make(chan bool)
			p.A.Go(func() error { close(in); <-stop; return nil })
			<-in
			return func() { close(stop) }, nil
		}, "a thread in namespace net:["},
		{"child process", func() (func(), error) {
			cmd := exec.Command("/bin/sleep", "60")
			err := p.A.Start(cmd)
			return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }, err
		}, "(sleep) "},
		{"interface", func() (func(), error) {
			_, _, err := p.Connect(p.A, p.A, LinkOptions{NameA: "forgotten"})
			return func() {}, err
		}, "host A: veth interface forgotten"},
		{"nftables table", func() (func(), error) {
			return func() {}, newTable(p.A, "forgotten")
		}, "host A: nftables table inet forgotten"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			r := &recorder{TB: t}
			s := TakeSnapshot(p.A, p.B)
			if row.want != "" {
				s.settle = 20 * time.Millisecond // it will not disappear
			}
			s.check(r)
			undo, err := row.leak()
			if err != nil {
				t.Fatal(err)
			}
			r.end()
			undo()
			got := strings.Join(r.errors, "\n")
			if (row.want == "") != (got == "") || !strings.Contains(got, row.want) {
				t.Errorf("the check reported:\n%s\nwant %q", got, row.want)
			}
		})
	}
}

func leakedGoroutine(stop chan bool) { <-stop }

// newTable makes an nftables table of family inet, in one transaction as nftables requires
// (include/uapi/linux/netfilter/nfnetlink.h: struct nfgenmsg, the batch messages).
func newTable(h *Host, name string) error {
	message := func(kind, flags, family, resource int, attrs []byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(20+len(attrs)))
		b = binary.NativeEndian.AppendUint16(b, uint16(kind))
		b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLM_F_REQUEST|flags))
		b = append(b, make([]byte, 8)...) // sequence and port
		b = append(b, byte(family), 0)
		b = binary.BigEndian.AppendUint16(b, uint16(resource))
		return append(b, attrs...)
	}
	value := append([]byte(name), 0)
	attr := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	attr = append(binary.NativeEndian.AppendUint16(attr, nftTableName), value...)
	for len(attr)%4 != 0 {
		attr = append(attr, 0)
	}
	const newTableKind = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE
	batch := slices.Concat(
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil),
		message(newTableKind, unix.NLM_F_CREATE|unix.NLM_F_ACK, unix.NFPROTO_INET, 0, attr),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES, nil))
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		answer := make([]byte, 4096)
		n, _, err := unix.Recvfrom(fd, answer, 0)
		if err != nil || n < 20 {
			return fmt.Errorf("answer of %d bytes: %v", n, err)
		}
		if errno := -int32(binary.NativeEndian.Uint32(answer[16:])); errno != 0 {
			return os.NewSyscallError("new table", unix.Errno(errno))
		}
		return nil
	})
}
