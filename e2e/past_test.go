//go:build linux

package e2e_test

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// rawSocket describes the actions of a process with CAP_NET_RAW: it sends a frame from a packet socket and a packet
// from a raw socket, and waits for a frame with a text.
type rawSocket struct {
	Interface int
	Frame     []byte
	Packet    []byte // IPv4
	Until     string
}

func init() {
	children["raw"] = func() error {
		var r rawSocket
		if err := json.Unmarshal([]byte(os.Getenv("DIVERT_TEST_TARGET")), &r); err != nil {
			return err
		}
		all := int(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		tap, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, all)
		if err != nil {
			return err
		}
		if err := unix.Bind(tap, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: r.Interface}); err != nil {
			return err
		}
		if _, err := unix.Write(tap, r.Frame); err != nil {
			return err
		}
		raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		if err := unix.Sendto(raw, r.Packet, 0, &unix.SockaddrInet4{Addr: [4]byte(r.Packet[16:20])}); err != nil {
			return err
		}
		fmt.Println("sent")
		for b := make([]byte, 2000); ; {
			n, err := unix.Read(tap, b)
			if err != nil {
				return err
			}
			if strings.Contains(string(b[:n]), r.Until) {
				fmt.Println(r.Until)
				return nil
			}
		}
	}
}

// TestPacketAndRawSockets: a process with CAP_NET_RAW sends frames past all handles and reads packets that they drop.
// Handles see packets of raw sockets, without the flag Impostor, but no handle of the layer SOCKET learns of those
// sockets.
func TestPacketAndRawSockets(t *testing.T) {
	needUsers(t)
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	from, to := pair.A.Addr4(), pair.B.Addr4()
	conn, expect := receiver(t, pair.B, to)
	near, expectNear := receiver(t, pair.A, from)
	outbound := collectPayloads(t, pair.A, fmt.Sprintf("outbound and not impostor and udp.DstPort == %d", addrPort(conn).Port()))
	openAt(t, pair.A, fmt.Sprintf("inbound and udp.DstPort == %d", addrPort(near).Port()), divert.WithFlags(divert.Drop))
	events := openEvents(t, pair.A, divert.LayerSocket, fmt.Sprintf("remotePort == %d", addrPort(conn).Port()), divert.Sniff)
	packet := func(text string) []byte {
		return craft(t, from.String(), to.String(), addrPort(conn).Port(), []byte(text))
	}
	frame := append(append(pair.LinkB.MAC(), pair.LinkA.MAC()...), 8, 0)
	spec, err := json.Marshal(rawSocket{pair.LinkA.Index(), append(frame, packet("frame")...), packet("raw"), "dropped"})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=raw", "DIVERT_TEST_TARGET="+string(spec))
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, asNobody(unix.CAP_NET_RAW)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.A.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "sent\n" {
		t.Fatal(line, err)
	}
	expect("frame", "raw")
	outbound.expect(t, "handle", "raw")
	if n := drained(t, events); n != 0 {
		t.Errorf("the layer SOCKET has %d events", n)
	}
	fmt.Fprint(dialUDP(t, pair.B, near.LocalAddr()), "dropped")
	if line, err := lines.ReadString('\n'); line != "dropped\n" {
		t.Error(line, err)
	}
	expectNear()
}

// TestTakenBeforeHandles: handles do not see packets taken by XDP programs or by nftables rules of earlier priority,
// nor packets that stay in another network namespace.
func TestTakenBeforeHandles(t *testing.T) {
	t.Parallel()
	const text = "taken before"
	const length = 20 + 8 + len(text) // length of its packet; no other packet here has it
	for _, taker := range []struct {
		name string
		take func(t *testing.T, l *lab.Link)
	}{
		{"an earlier rule", func(t *testing.T, l *lab.Link) {
			nft(t, l.Host(), func(c *nftables.Conn) {
				table := c.AddTable(&nftables.Table{Name: "earlier", Family: nftables.TableFamilyINet})
				chain := c.AddChain(&nftables.Chain{Name: "earlier", Table: table, Type: nftables.ChainTypeFilter,
					Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-500)})
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
					&expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, uint32(length))},
					&expr.Verdict{Kind: expr.VerdictDrop},
				}})
			})
		}},
		{"XDP", func(t *testing.T, l *lab.Link) {
			needEngine(t, l.Host(), divert.EngineKernel)
			// struct xdp_md of linux/bpf.h begins with data and data_end; XDP_DROP is 1, XDP_PASS 2.
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
				asm.LoadMem(asm.R2, asm.R1, 4, asm.Word),
				asm.LoadMem(asm.R3, asm.R1, 0, asm.Word),
				asm.Sub.Reg(asm.R2, asm.R3),
				asm.Mov.Imm(asm.R0, 1),
				asm.JEq.Imm(asm.R2, int32(14+length), "end"),
				asm.Mov.Imm(asm.R0, 2),
				asm.Return().WithSymbol("end"),
			}})
			if err != nil {
				t.Skip(err)
			}
			defer p.Close()
			if err := l.Host().Do(func() error {
				attached, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: l.Index(), Flags: link.XDPGenericMode})
				if err == nil {
					t.Cleanup(func() { attached.Close() })
				}
				return err
			}); err != nil {
				t.Skip(err)
			}
		}},
	} {
		t.Run(taker.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			conn, expect := receiver(t, pair.A, pair.A.Addr4())
			handle := collectPayloads(t, pair.A, fmt.Sprintf("udp.DstPort == %d", addrPort(conn).Port()))
			c := dialUDP(t, pair.B, conn.LocalAddr())
			fmt.Fprint(c, "before")
			expect("before")
			taker.take(t, pair.LinkA)
			fmt.Fprint(c, text)
			fmt.Fprint(c, "after")
			expect("after")
			handle.expect(t, "handle", "before", "after")
		})
	}
	t.Run("another namespace", func(t *testing.T) {
		r := lab.HostRouterPeerT(t, lab.LinkOptions{})
		conn, expect := receiver(t, r.A, netip.MustParseAddr("127.0.0.1"))
		handle := collectPayloads(t, r.R, "udp")
		fmt.Fprint(dialUDP(t, r.A, conn.LocalAddr().(*net.UDPAddr)), "elsewhere")
		expect("elsewhere")
		handle.expect(t, "handle of the router")
	})
}
