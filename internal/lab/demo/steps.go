//go:build linux

package demo

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// Ports of the servers on B.
const (
	portEcho  = 7
	portDNS   = 53
	portOther = 5353
	portHTTP  = 80
	portText  = 4000
	portBulk  = 5001
	portCrash = 7777
)

// capture sniffs UDP, TCP and HTTP on A while it talks to B.
func (d *demo) capture() error {
	echo, err := d.B.Echo("udp", fmt.Sprintf(":%d", portEcho))
	if err != nil {
		return err
	}
	defer echo.Close()
	web, err := d.serveHTTP()
	if err != nil {
		return err
	}
	defer web.Close()
	h, err := d.show("tcp or udp", divert.Sniff)
	if err != nil {
		return err
	}
	defer h.Close()
	d.printf("  A sends B a datagram and a web request, over IPv4 and over IPv6. The handle gets copies:\n\n")
	for _, addr := range d.B.Addrs() {
		if err := d.ask(addr); err != nil {
			return err
		}
		if _, err := d.get(addr); err != nil {
			return err
		}
	}
	if err := h.Shutdown(divert.ShutdownRecv); err != nil {
		return err
	}
	seen := map[string]map[bool]bool{} // kind, whether IPv6
	total, others := 0, 0
	for p, err := range h.Packets(d.ctx) {
		if err != nil {
			return err
		}
		total++
		kind := kindOf(p)
		if kind == "" {
			others++
		} else if seen[kind] == nil {
			seen[kind] = map[bool]bool{p.Addr.IPv6: true}
		} else {
			seen[kind][p.Addr.IPv6] = true
		}
		if d.Verbose || kind != "" {
			d.printf("    %s\n", line(p))
		}
	}
	if !d.Verbose {
		d.printf("    (and %d packets of TCP's own; -v shows them)\n", others)
	}
	d.printf("\n")
	s, err := d.counters(h)
	if err != nil {
		return err
	}
	for _, kind := range [...]string{"a datagram out", "its echo in", "a TCP handshake's SYN out", "its answer in", "the HTTP request", "the HTTP answer"} {
		check(&d.report, fmt.Sprintf("captured %s, over IPv4 and IPv6", kind), len(seen[kind]), 2)
	}
	check(&d.report, fmt.Sprintf("all %d packets that matched were received, none was lost", total), s.Received, s.Matched)
	return nil
}

// ask sends a datagram to the echo server at addr and waits for the echo.
func (d *demo) ask(addr netip.Addr) error {
	c, err := d.A.Dial(d.ctx, "udp", netip.AddrPortFrom(addr, portEcho).String())
	if err != nil {
		return err
	}
	defer c.Close()
	question := "hello over " + familyOf(addr)
	if _, err := io.WriteString(c, question); err != nil {
		return err
	}
	c.SetReadDeadline(time.Now().Add(d.patience))
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err == nil && string(b[:n]) != question {
		err = fmt.Errorf("sent %q and got %q back", question, b[:n])
	}
	return err
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// kindOf returns the step's name for a captured packet, "" for packets that do not count.
func kindOf(p *divert.Packet) string {
	var h packet.Parsed
	if !h.ParseExact(p.Data) {
		return ""
	}
	payload := h.Payload(p.Data)
	t := h.TCP(p.Data)
	switch {
	case t == nil && bytes.HasPrefix(payload, []byte("hello")) && p.Addr.Outbound:
		return "a datagram out"
	case t == nil && bytes.HasPrefix(payload, []byte("hello")):
		return "its echo in"
	case t == nil:
		return ""
	case t.Flags()&^(packet.TCPEce|packet.TCPCwr) == packet.TCPSyn && p.Addr.Outbound:
		return "a TCP handshake's SYN out"
	case t.Flags()&^packet.TCPEce == packet.TCPSyn|packet.TCPAck && !p.Addr.Outbound:
		return "its answer in"
	case bytes.HasPrefix(payload, []byte("GET / HTTP/1.1\r\n")) && p.Addr.Outbound:
		return "the HTTP request"
	case bytes.Contains(payload, []byte(page)) && !p.Addr.Outbound:
		return "the HTTP answer"
	}
	return ""
}

// drop loses the queries to one port.
func (d *demo) drop() error {
	const count = 20
	servers := map[int]*lab.Echo{}
	for _, port := range []int{portDNS, portOther} {
		e, err := d.B.Echo("udp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		defer e.Close()
		servers[port] = e
	}
	h, err := d.show(fmt.Sprintf("outbound and udp.DstPort == %d", portDNS), divert.Drop)
	if err != nil {
		return err
	}
	defer h.Close()
	d.printf("  A sends queries to port %d of B, and as many to port %d, over both families.\n", portDNS, portOther)
	lost, other, err := d.queries(count)
	if err != nil {
		return err
	}
	check(&d.report, fmt.Sprintf("%d queries were sent to port %d", 2*count, portDNS), lost.Sent, 2*count)
	check(&d.report, "no call of the sender failed: it notices nothing", lost.Refused, 0)
	check(&d.report, "none of them arrived", servers[portDNS].Served(), 0)
	check(&d.report, fmt.Sprintf("all queries to port %d were answered", portOther), other.Echoed, 2*count)
	s, err := d.counted(h, func(s divert.Stats) bool { return s.Dropped >= 2*count })
	if err != nil {
		return err
	}
	check(&d.report, fmt.Sprintf("the handle has dropped %d packets, the queries and no other", s.Dropped), s.Dropped, 2*count)
	if err := h.Close(); err != nil {
		return err
	}
	again, _, err := d.queries(1)
	if err != nil {
		return err
	}
	check(&d.report, "closed, and the queries are answered again", again.Echoed, 2)
	return d.passBy()
}

// queries sends count datagrams to each of the two ports in each family.
func (d *demo) queries(count int) (dns, other lab.Exchanged, err error) {
	for _, addr := range d.B.Addrs() {
		for port, sum := range map[uint16]*lab.Exchanged{portDNS: &dns, portOther: &other} {
			wait := d.patience
			if sum == &dns && count > 1 {
				wait = 2 * time.Millisecond // for an answer that must not arrive
			}
			r, err := lab.ExchangeUDP(d.ctx, d.A, netip.AddrPortFrom(addr, port), lab.Exchange{Count: count, Wait: wait})
			if err != nil {
				return dns, other, err
			}
			sum.Sent += r.Sent
			sum.Refused += r.Refused
			sum.Echoed += r.Echoed
		}
	}
	return dns, other, nil
}

// passBy shows that packets that do not match never reach the program.
func (d *demo) passBy() error {
	h, err := d.show(fmt.Sprintf("udp.DstPort == %d", portCrash), 0)
	if err != nil {
		return err
	}
	defer h.Close()
	const size = 4 << 20
	d.printf("  Nobody reads from this handle while A sends B %d MiB over TCP.\n", size>>20)
	if _, err := lab.TransferTCP(d.ctx, d.A, d.B, netip.AddrPortFrom(d.B.Addr4(), portBulk), size, 1); err != nil {
		return err
	}
	s, err := d.counters(h)
	if err != nil {
		return err
	}
	check(&d.report, "they arrive; not one packet matched", s.Matched, 0)
	queued, err := d.queuedPackets()
	if err != nil {
		return err
	}
	if strings.HasPrefix(h.Description(), "interpreter") {
		d.printf("       (the interpreter had to look at %d packets; with eBPF they would have stayed in the kernel)\n", queued)
		return nil
	}
	check(&d.report, "not one packet left the kernel", queued, 0)
	return nil
}

// queuedPackets returns how many packets have passed through the queues of A that are bound now.
func (d *demo) queuedPackets() (total int, err error) {
	queues, err := d.A.PacketQueues()
	for _, q := range queues {
		total += q.Last
	}
	return total, err
}

// speed sends a stream through a program that sends every packet on.
func (d *demo) speed() error {
	d.printf("  A sends B %d MiB over one TCP connection, without any handle and then with one:\n", bulkSize>>20)
	plain, err := d.transfer()
	if err != nil {
		return err
	}
	// Room for everything that TCP has in flight, however busy the machine is.
	h, err := d.show(fmt.Sprintf("tcp and remotePort == %d", portBulk), 0,
		divert.WithQueueLength(16384), divert.WithQueueSize(32<<20), divert.WithQueueTime(16*time.Second))
	if err != nil {
		return err
	}
	defer h.Close()
	d.printf("  The program gets every packet of the connection and sends it on.\n")
	finish := serve(h, func(ps []divert.Packet) error {
		_, err := h.AcceptBatch(ps)
		return err
	})
	diverted, err := d.transfer()
	d.claim("the bytes that arrived have the length and the SHA-256 of those sent", err == nil, fmt.Sprint(err))
	if err := finish(); err != nil {
		return err
	}
	s, err := d.counters(h)
	if err != nil {
		return err
	}
	d.claim(fmt.Sprintf("all %d packets of it came to the program", s.Received), s.Received == s.Matched && s.Received > 0,
		fmt.Sprintf("expected as many received as matched, saw %d and %d", s.Received, s.Matched))
	check(&d.report, "it sent every one on; none was lost", s.Reinjected, s.Received)
	if diverted > 0 {
		d.printf("       %.1f Gb/s through the program, %.1f Gb/s without it, hashing included\n", rate(diverted), rate(plain))
	}
	return nil
}

// bulkSize is the size of the stream, in bytes.
const bulkSize = 32 << 20

// transfer sends the stream, checks the received bytes, and returns its duration.
func (d *demo) transfer() (time.Duration, error) {
	return lab.TransferTCP(d.ctx, d.A, d.B, netip.AddrPortFrom(d.B.Addr4(), portBulk), bulkSize, 2)
}

// rate returns the gigabits per second of a transfer.
func rate(d time.Duration) float64 { return bulkSize * 8 / 1e9 / d.Seconds() }
