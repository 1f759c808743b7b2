package main

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// topCounts counts packets and their bytes, from the IP header on.
type topCounts struct {
	BytesIn    uint64 `json:"bytes_in"`
	BytesOut   uint64 `json:"bytes_out"`
	PacketsIn  uint64 `json:"packets_in"`
	PacketsOut uint64 `json:"packets_out"`
}

// add counts a packet.
func (c *topCounts) add(out bool, bytes uint64) {
	if out {
		c.BytesOut += bytes
		c.PacketsOut++
	} else {
		c.BytesIn += bytes
		c.PacketsIn++
	}
}

// plus adds counts; use minus to subtract.
func (c *topCounts) plus(d topCounts) {
	c.BytesIn += d.BytesIn
	c.BytesOut += d.BytesOut
	c.PacketsIn += d.PacketsIn
	c.PacketsOut += d.PacketsOut
}

func (c topCounts) minus() topCounts {
	return topCounts{-c.BytesIn, -c.BytesOut, -c.PacketsIn, -c.PacketsOut}
}

// turned returns the counts as seen by the other end.
func (c topCounts) turned() topCounts {
	return topCounts{c.BytesOut, c.BytesIn, c.PacketsOut, c.PacketsIn}
}

// topHistory is how many intervals are remembered.
const topHistory = 60

// meter counts packets and measures their rate.
type meter struct {
	topCounts
	before  topCounts           // at the last tick
	in, out float64             // bytes per second in the last interval
	packets float64             // packets per second
	history [topHistory]float32 // bytes per second both ways, a ring
	last    time.Time           // of the last packet
}

// tick ends an interval.
func (m *meter) tick(seconds float64, at int) {
	d := m.topCounts
	d.plus(m.before.minus())
	m.before = m.topCounts
	rate := func(n uint64) float64 { return max(0, float64(int64(n))/seconds) } // negative if bytes turned out to belong to another process
	m.in, m.out, m.packets = rate(d.BytesIn), rate(d.BytesOut), rate(d.PacketsIn+d.PacketsOut)
	m.history[at] = float32(m.in + m.out)
}

// topFlowKey identifies a flow: TCP or UDP between two ends, another protocol between two addresses. In packets from
// this host to itself, and in routed ones, local is the end that sent the first packet.
type topFlowKey struct {
	protocol      uint8
	local, remote netip.AddrPort
}

func (k topFlowKey) turned() topFlowKey { return topFlowKey{k.protocol, k.remote, k.local} }

// topFlow has the counts and the ends of a flow.
type topFlow struct {
	meter
	key      topFlowKey
	both     bool     // both ends are on this host
	process  *topProc // of the local end; the one without a process if unknown
	other    *topProc // of the remote end, if both are here
	excess   bool     // stands for all flows beyond the limit
	finished uint8    // bits: a FIN came in, went out, a RST

	unknown [2]struct { // in and out: a packet of still unknown length
		waits bool
		seq   uint32
	}
}

// topProc is a process, or all traffic without a process.
type topProc struct {
	meter
	pid   uint32
	name  string
	path  string
	flows int // remembered flows with this process at the local end
}

// topHost is the address of another host, or of this one in packets from it to itself.
type topHost struct {
	meter
	addr  netip.Addr // the zero Addr: hosts beyond the limit
	flows int
}

// topRoom limits memory, since the senders of packets determine the number of flows and hosts; those beyond the limit
// count together.
type topRoom struct{ flows, hosts, procs int }

var usualTopRoom = topRoom{flows: 65536, hosts: 65536, procs: 16384}

// How long rows stay after they have ended or gone silent.
const (
	topFinished = 5 * time.Second
	topSilent   = time.Minute
)

// counter counts packets by process, flow and host. The sums over all processes and over all hosts equal the total:
// every byte counts. A packet from this host to itself counts as sent and as received, as in its interface's counters,
// but only once in its flow.
type counter struct {
	processes *processes // nil: unknown
	room      topRoom

	mu     sync.Mutex
	total  meter
	flows  map[topFlowKey]*topFlow
	procs  map[uint32]*topProc
	hosts  map[netip.Addr]*topHost
	gone   topCounts // counts of forgotten processes
	at     int       // index into the histories
	ticked time.Time
	parsed packet.Parsed

	scratch [topSnap]byte
}

func newCounter(processes *processes, now time.Time) *counter {
	c := &counter{processes: processes, room: usualTopRoom}
	c.clear(now)
	return c
}

// clear forgets everything.
func (c *counter) clear(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flows, c.procs, c.hosts = map[topFlowKey]*topFlow{}, map[uint32]*topProc{}, map[netip.Addr]*topHost{}
	c.total, c.gone, c.at, c.ticked = meter{}, topCounts{}, 0, now
}

// count counts packets received just now.
func (c *counter) count(ps []divert.Packet, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range ps {
		c.one(&ps[i], now)
	}
}

func (c *counter) one(p *divert.Packet, now time.Time) {
	parsed := &c.parsed
	data, untold := c.parse(p.Data)
	if data == nil {
		return // layers with packets deliver IP packets only
	}
	bytes, pid := uint64(parsed.Length), uint32(0)
	if untold {
		bytes = uint64(parsed.HeaderLen)
	}
	if p.Addr.Layer == divert.LayerNetwork {
		pid = p.Addr.Network().ProcessID
	}
	src, dst := addresses(data, parsed)
	sport, dport, _ := ports(data, parsed)
	key := topFlowKey{parsed.Protocol, netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)}
	eitherWay := p.Addr.Loopback || p.Addr.Layer == divert.LayerForward
	out := p.Addr.Outbound || eitherWay
	if !out {
		key = key.turned()
	}
	f := c.flows[key]
	if f == nil && eitherWay {
		if f = c.flows[key.turned()]; f != nil {
			out, key = false, key.turned()
		}
	}
	if f == nil {
		f = c.begin(key, p.Addr.Loopback)
	}
	if h := parsed.TCP(data); h != nil {
		f.note(h.Flags(), out)
		bytes += f.untold(h.Seq(), out, untold)
	}
	local, remote := c.ends(f, &p.Addr, pid, out)
	f.add(out, bytes)
	count := func(m *meter, out bool) { m.add(out, bytes); m.last = now }
	host := c.host(key.remote.Addr())
	count(&c.total, out)
	count(&local.meter, out)
	count(&host.meter, out)
	if p.Addr.Loopback {
		count(&c.total, !out)
		count(&remote.meter, !out)
		count(&host.meter, !out)
	}
	f.last = now
}

// parse parses a packet. A TCP packet that the stack has yet to segment may be too long for the length in its header,
// which is then 0 (BIG TCP; include/linux/ip.h, iph_totlen). For such a packet parse returns a copy that has the
// received length in its header, and untold. It returns nil if data is not an IP packet.
func (c *counter) parse(data []byte) (parsed []byte, untold bool) {
	if c.parsed.Parse(data) && !(c.parsed.Family == 6 && c.parsed.Extended && be16(data[4:]) == 0) {
		return data, false
	}
	n := copy(c.scratch[:], data)
	switch b := c.scratch[:n]; {
	case n >= packet.IPv4HeaderLen && b[0]>>4 == 4 && be16(b[2:]) == 0:
		binary.BigEndian.PutUint16(b[2:], uint16(n))
	case n >= packet.IPv6HeaderLen && b[0]>>4 == 6 && be16(b[4:]) == 0:
		binary.BigEndian.PutUint16(b[4:], uint16(n-packet.IPv6HeaderLen))
	default:
		return nil, false
	}
	if !c.parsed.Parse(c.scratch[:n]) || c.parsed.TCPOff < 0 {
		return nil, false
	}
	return c.scratch[:n], true
}

// topUntold exceeds the longest packet without a length in its header; Linux has at most 512 KiB (GSO_MAX_SIZE in
// include/linux/netdevice.h).
const topUntold = 1 << 20

// untold returns the payload of the previous packet in one direction of a connection if its length was unknown: the
// sequence number has advanced by it since.
func (f *topFlow) untold(seq uint32, out, untold bool) (bytes uint64) {
	u := &f.unknown[0]
	if out {
		u = &f.unknown[1]
	}
	if moved := seq - u.seq; u.waits && moved > 0 && moved <= topUntold {
		bytes, u.waits = uint64(moved), false
	}
	if untold {
		u.seq, u.waits = seq, true
	}
	return bytes
}

// note records whether a connection has begun or ended.
func (f *topFlow) note(flags packet.TCPFlags, out bool) {
	switch {
	case flags&packet.TCPSyn != 0:
		f.finished = 0
	case flags&packet.TCPRst != 0:
		f.finished = 7
	case flags&packet.TCPFin != 0 && out:
		f.finished |= 1
	case flags&packet.TCPFin != 0:
		f.finished |= 2
	}
}

// begin begins a flow.
func (c *counter) begin(key topFlowKey, both bool) *topFlow {
	excess := len(c.flows) >= c.room.flows
	if excess {
		key = topFlowKey{}
		if f := c.flows[key]; f != nil {
			return f
		}
	}
	f := &topFlow{key: key, both: both, excess: excess, process: c.proc(0, nil), other: c.proc(0, nil)}
	c.flows[key] = f
	if !excess {
		f.process.flows++
		c.host(key.remote.Addr()).flows++
	}
	return f
}

// ends returns the processes of both ends of a flow, given pid from one of its packets. When it learns the process of a
// flow, it moves the flow's earlier counts to that process.
func (c *counter) ends(f *topFlow, a *divert.Address, pid uint32, out bool) (local, remote *topProc) {
	switch {
	case f.excess:
		p := c.proc(pid, a)
		return p, p
	case pid == 0:
	case f.both && !out: // a packet of this host to itself has the process of its sender, here the remote end
		if f.other.pid != pid {
			f.other.plus(f.turned().minus())
			f.other = c.proc(pid, a)
			f.other.plus(f.turned())
		}
	case f.process.pid != pid:
		f.process.flows--
		f.process.plus(f.topCounts.minus())
		f.process = c.proc(pid, a)
		f.process.plus(f.topCounts)
		f.process.flows++
	}
	return f.process, f.other
}

// proc returns a process; a is the address of one of its packets, which has its name.
func (c *counter) proc(pid uint32, a *divert.Address) *topProc {
	p := c.procs[pid]
	if p != nil {
		return p
	}
	if len(c.procs) >= c.room.procs {
		pid = 0
		if p = c.procs[pid]; p != nil {
			return p
		}
	}
	p = &topProc{pid: pid}
	if pid != 0 && c.processes != nil {
		p.name, p.path = c.processes.program(pid, a.ProcessName()), c.processes.path(pid)
	}
	c.procs[pid] = p
	return p
}

// host returns a host.
func (c *counter) host(addr netip.Addr) *topHost {
	h := c.hosts[addr]
	if h != nil {
		return h
	}
	if len(c.hosts) >= c.room.hosts {
		addr = netip.Addr{}
		if h = c.hosts[addr]; h != nil {
			return h
		}
	}
	h = &topHost{addr: addr}
	c.hosts[addr] = h
	return h
}

// tick ends an interval, and forgets rows that have ended or are silent.
func (c *counter) tick(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seconds := now.Sub(c.ticked).Seconds()
	if seconds <= 0 {
		return
	}
	c.ticked = now
	c.total.tick(seconds, c.at)
	for key, f := range c.flows {
		f.tick(seconds, c.at)
		silent := now.Sub(f.last)
		if silent > topSilent || f.finished&3 == 3 && silent > topFinished {
			delete(c.flows, key)
			if f.excess {
				continue
			}
			f.process.flows--
			if h := c.hosts[key.remote.Addr()]; h != nil {
				h.flows--
			}
		}
	}
	for pid, p := range c.procs { // the flows of a silent process are gone by now
		if p.tick(seconds, c.at); now.Sub(p.last) > topSilent {
			c.gone.plus(p.topCounts)
			delete(c.procs, pid)
		}
	}
	for addr, h := range c.hosts {
		if h.tick(seconds, c.at); now.Sub(h.last) > topSilent && h.addr.IsValid() {
			delete(c.hosts, addr)
			c.others(h.topCounts)
		}
	}
	c.at = (c.at + 1) % topHistory
}

// others adds counts to the hosts beyond the limit.
func (c *counter) others(n topCounts) {
	h := c.hosts[netip.Addr{}]
	if h == nil {
		h = &topHost{}
		c.hosts[h.addr] = h
	}
	h.plus(n)
	h.before.plus(n) // it does not count for the current rate
}
