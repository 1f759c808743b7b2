//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// load is one kind of traffic between the hosts.
type load struct {
	name     string
	title    string
	unit     string  // of the count
	per      float64 // bytes in a unit, where the load counts bytes
	rate     string  // unit of the printed rate
	scale    float64 // factor from units per second to that
	inbound  bool    // B sends to A; otherwise A to B
	protocol string
	latency  bool // the result is the time, not the rate
	connects bool // many connections
	flows    int  // number of flows, each packet of another one than the last; 0: few
	run      func(*course) error
}

// loads are all loads, in the order of the tables.
var loads = []load{
	floodOf(load{name: "udp64", title: "UDP, 64-byte packets, as fast as they go", run: flooding(64, 1)}),
	floodOf(load{name: "udp64x8", title: "UDP, 64-byte packets of 8 flows, as fast as they go", run: flooding(64, 8)}),
	floodOf(load{name: "udp1400", title: "UDP, 1400-byte packets, as fast as they go", run: flooding(1400, 1)}),
	floodOf(load{name: "udp64in", title: "UDP, 64-byte packets, as fast as they go, inbound", inbound: true, run: flooding(64, 1)}),
	floodOf(load{name: "flows100k", title: "UDP, 64-byte packets of 100,000 flows in turn, as fast as they go", flows: manyFlows, run: rotating(64)}),
	floodOf(load{name: "quic", title: "UDP as QUIC sends it, 16 to 54 datagrams of 1,200 to 1,350 bytes with each call, received together", run: streamingQUIC(true)}),
	floodOf(load{name: "quic-single", title: "the same, each datagram received by itself", run: streamingQUIC(false)}),
	{name: "tcp1", title: "TCP bulk, 1 stream", unit: "KiB", per: 1024, rate: "Gbit/s", scale: 1024 * 8 / 1e9, protocol: "tcp", run: streaming(1)},
	{name: "tcp8", title: "TCP bulk, 8 streams", unit: "KiB", per: 1024, rate: "Gbit/s", scale: 1024 * 8 / 1e9, protocol: "tcp", run: streaming(8)},
	{name: "latency", title: "UDP request and response, one packet in flight", unit: "round trip", rate: "1000/s", scale: 1e-3, protocol: "udp", latency: true, run: pingPong},
	{name: "connect", title: "Short TCP connections, 4 at a time", unit: "connection", rate: "1000/s", scale: 1e-3, protocol: "tcp", connects: true, run: connecting(4)},
}

// metric is the metric for comparisons: the rate, or the median of the times.
func (l *load) metric() metric {
	if l.latency {
		return p50
	}
	return rate
}

func (l *load) traffic() traffic {
	return traffic{Inbound: l.inbound, Protocol: l.protocol, Flows: l.flows}
}

// manyFlows is the number of flows in the load with many.
const manyFlows = 100_000

// floodOf returns a load of UDP whose packets are counted.
func floodOf(l load) load {
	l.unit, l.rate, l.scale, l.protocol = "packet", "1000/s", 1e-3, "udp"
	return l
}

// course is a run of one load: sender, receiver, duration and measurement.
type course struct {
	from, to *lab.Host
	duration time.Duration
	drops    bool
	leads    bool
	turns    int // rounds through many flows before the measurement
	cell     *cell

	child      *child
	before     usage
	beforeSelf time.Duration
	beforeBusy time.Duration
	began      time.Time
}

// bulk reports whether the load counts bytes of TCP.
func (l *load) bulk() bool { return l.per > 0 }

// target is the destination of the load.
func (c *course) target() netip.AddrPort { return netip.AddrPortFrom(c.to.Addr4(), loadPort) }

// The address that contenders replace with another, that of host B (internal/lab). No host has it; it would be on the
// link.
var (
	aimAddr  = netip.MustParseAddr("10.77.0.99")
	realAddr = netip.MustParseAddr("10.77.0.2")
)

// aim is the destination that bulk TCP connects to.
func (c *course) aim() netip.AddrPort {
	if c.leads {
		return netip.AddrPortFrom(aimAddr, loadPort)
	}
	return c.target()
}

// begin starts the measurement.
func (c *course) begin() (err error) {
	if c.before, err = c.child.ask(); err != nil {
		return err
	}
	c.began = time.Now()
	if c.beforeBusy, err = busyTime(); err != nil {
		return err
	}
	c.beforeSelf, err = cpuTime()
	return err
}

// end ends the measurement: count units have arrived in the time took.
func (c *course) end(took time.Duration, count float64) error {
	self, err := cpuTime()
	if err != nil {
		return err
	}
	busy, err := busyTime()
	if err != nil {
		return err
	}
	window := time.Since(c.began)
	after, err := c.child.ask()
	if err != nil {
		return err
	}
	if count <= 0 || took <= 0 {
		return fmt.Errorf("%w: %v units in %v", errNothing, count, took)
	}
	r := c.cell
	r.Count, r.Seconds = count, took.Seconds()
	r.Rate = count / took.Seconds()
	own := after.CPU - c.before.CPU
	r.CPU = float64(own) / count
	all := own + self - c.beforeSelf
	r.CPUAll = float64(all) / count
	r.Others = min(1, max(0, float64(busy-c.beforeBusy-all)/(float64(window)*float64(runtime.NumCPU())))) // ticks are coarse
	r.Handled, r.Missed = after.Handled-c.before.Handled, after.Missed-c.before.Missed
	r.Again, r.Maps = after.Again, after.Maps
	return nil
}

// errNothing means that no traffic of a load got through.
var errNothing = errors.New("nothing got through")

// patience is how long a load may make no progress before it counts as stuck.
const patience = 10 * time.Second
