package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// Config says what a Filter does. Only Hosts must be given.
type Config struct {
	Hosts *Hosts // the names that are blocked; the list may change at any time

	// Ports are those of servers whose TCP connections are judged, HTTP and TLS alike: 80 and 443 if there are none.
	// QUICPorts are those for QUIC: 443 if there are none.
	Ports, QUICPorts []uint16

	// Where, if not empty, is a filter that connections must match besides, such as processId == 4711. It must hold for the
	// packets of both directions alike: localAddr and remoteAddr do, ip.SrcAddr does not.
	Where string

	// Layer is LayerNetwork for connections of this host, LayerForward for those it routes (Linux). Both directions must pass.
	Layer divert.Layer

	// FailClosed ends connections of which nothing can be said: no name within 16 KiB or 2 s, no memory for what waits, and, of
	// connections that are older than the Filter, those that do not go on with a request or hello. Without it they pass.
	FailClosed bool

	// BlockNameless blocks connections that name no host: a hello without server name, a request without Host, QUIC that
	// cannot be read, other protocols on these ports. Without it they pass.
	BlockNameless bool

	Page      []byte // body of the answer to blocked HTTP requests, HTML in UTF-8, at most MaxPage bytes; nil: a page of our own
	MaxFlows  int    // connections that are remembered, of TCP and of QUIC each; 0: 16384
	MaxMemory int    // bytes that wait or are kept for comparison, of all connections; 0: 64 MiB

	Blocked func(Event) // is called for each connection that is blocked; it must not call the Filter
	Report  func(error) // is told of packets that could not be sent; it must not call the Filter

	// Open opens the handle: divert.OpenProgram if it is nil, in tests the method OpenProgram of a diverttest.Network.
	Open func(*filter.Program, ...divert.Option) (*divert.Handle, error)
	// Options are further options for the handle, such as divert.WithPriority.
	Options []divert.Option
}

// MaxPage is how long a block page may be, in bytes.
const MaxPage = 8 << 10

// The limits of packets that wait for a name.
const (
	holdTime    = 2 * time.Second
	maxUnacked  = 64 << 10 // bytes judged and not acknowledged that a connection may have
	quietHolds  = 2        // packets that are held before the client is told that they have come
	maxHeldUDP  = 16       // datagrams that a connection of QUIC may have waiting
	maxAttempts = 8        // connections of QUIC between two ports that are remembered
)

// Event is a connection that was blocked.
type Event struct {
	Time     time.Time      `json:"time"`
	Protocol string         `json:"protocol"`        // http, tls, quic, or other
	Reason   string         `json:"reason"`          // listed, nameless, ambiguous, too-long, late, no-memory
	Host     string         `json:"host,omitempty"`  // as the client named it; it may hold any printable ASCII
	Entry    string         `json:"entry,omitempty"` // of the list
	Src      netip.AddrPort `json:"src"`
	Dst      netip.AddrPort `json:"dst"`
}

// The reasons of events.
const (
	reasonListed    = "listed"
	reasonNameless  = "nameless"
	reasonAmbiguous = "ambiguous"
	reasonTooLong   = "too-long"
	reasonLate      = "late"
	reasonNoMemory  = "no-memory"
)

// Stats counts what a Filter has done. Names are counted each time one is judged: of HTTP each request.
type Stats struct {
	HTTP, TLS, QUIC uint64 // requests, hellos and QUIC connections that were judged
	Blocked         uint64 // of them and of nameless connections, those that were blocked
	Other           uint64 // connections of other protocols, or without a beginning, that passed
	FailedOpen      uint64 // connections that passed because nothing could be said of them
	Differing       uint64 // packets that were dropped because bytes were sent again and had changed
	Fragments       uint64 // fragments of clients that were dropped, and packets that were cut short

	Flows  int // connections that are remembered now
	Memory int // bytes that wait or are kept now
}

// Filter blocks web sites. Its methods may be called from several goroutines.
type Filter struct {
	config Config
	handle *divert.Handle

	mu       sync.Mutex
	stats    Stats
	tcp      table[*connection]
	udp      table[*exchange]
	waiting  []waiter // by time, the first is the one that has waited longest
	accepted []divert.Packet

	parsed packet.Parsed
	buffer []byte
}

// waiter is something that holds packets.
type waiter struct {
	since time.Time
	late  func() // ends the waiting, if it has not ended
}

// Open opens a filter. Packets wait for it from then on, so Run should follow at once. It fails with divert.ErrInvalid if
// the configuration cannot be, a *filter.Error if Where does not compile, or the errors of divert.Open, of which
// ErrNotSupported also says that the client could not be answered (divert.WithInbound).
func Open(c Config) (*Filter, error) {
	text, err := c.complete()
	if err != nil {
		return nil, err
	}
	p, err := filter.Compile(text, c.Layer, filter.Extended)
	if err != nil {
		return nil, err
	}
	f := &Filter{config: c}
	// Pages and resets are injected, and at LayerForward held packets too.
	if f.handle, err = c.Open(p, append([]divert.Option{divert.WithInbound()}, c.Options...)...); err != nil {
		return nil, err
	}
	return f, nil
}

// complete sets the defaults, and returns the text of the handle's filter.
func (c *Config) complete() (string, error) {
	if len(c.Ports) == 0 {
		c.Ports = []uint16{80, 443}
	}
	if len(c.QUICPorts) == 0 {
		c.QUICPorts = []uint16{443}
	}
	if c.MaxFlows == 0 {
		c.MaxFlows = 16384
	}
	if c.MaxMemory == 0 {
		c.MaxMemory = 64 << 20
	}
	if c.Open == nil {
		c.Open = divert.OpenProgram
	}
	switch {
	case c.Hosts == nil:
		return "", fmt.Errorf("web: %w: there is no list of hosts", divert.ErrInvalid)
	case c.Layer != divert.LayerNetwork && c.Layer != divert.LayerForward:
		return "", fmt.Errorf("web: %w: the layer %v has no packets", divert.ErrInvalid, c.Layer)
	case c.MaxFlows < 1 || c.MaxMemory < 1:
		return "", fmt.Errorf("web: %w: MaxFlows and MaxMemory must be positive", divert.ErrInvalid)
	case len(c.Page) > MaxPage:
		return "", fmt.Errorf("web: %w: the page has %d bytes, and may have %d", divert.ErrInvalid, len(c.Page), MaxPage)
	case slices.Contains(c.Ports, 0) || slices.Contains(c.QUICPorts, 0):
		return "", fmt.Errorf("web: %w: no server has port 0", divert.ErrInvalid)
	}
	if c.Where != "" {
		if _, err := filter.Compile(c.Where, c.Layer, filter.Extended); err != nil {
			return "", err // with the text as it was written
		}
	}
	return c.text(), nil
}

// text returns the filter: TCP both ways, and of QUIC the client's packets with long headers, which begin connections.
func (c *Config) text() string {
	any := func(field string, ports []uint16) string {
		tests := make([]string, len(ports))
		for i, p := range ports {
			tests[i] = fmt.Sprintf("%s == %d", field, p)
		}
		return strings.Join(tests, " or ")
	}
	text := fmt.Sprintf("(tcp and (%s) or outbound and udp and udp.PayloadLength > 0 and udp.Payload[0] >= 128 and (%s)) and not loopback",
		any("remotePort", c.Ports), any("remotePort", c.QUICPorts))
	if c.Layer == divert.LayerForward {
		text = fmt.Sprintf("(%s or %s or udp.PayloadLength > 0 and udp.Payload[0] >= 128 and (%s))",
			any("tcp.DstPort", c.Ports), any("tcp.SrcPort", c.Ports), any("udp.DstPort", c.QUICPorts))
	}
	if c.Where != "" {
		text += " and (" + c.Where + ")"
	}
	return text
}

// Handle returns the handle, for its counters and description.
func (f *Filter) Handle() *divert.Handle { return f.handle }

// Stats returns the counters.
func (f *Filter) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stats
	s.Flows = f.tcp.len() + f.udp.len()
	return s
}

// Close closes the handle. A Run that goes on fails with net.ErrClosed.
func (f *Filter) Close() error { return f.handle.Close() }

// batch is how many packets are received at a time.
const batch = 128

// Run judges connections until ctx ends; then packets that wait for a name pass, or with FailClosed are dropped, and it
// returns ctx's error. It fails with the errors of receiving. Run may be called once.
func (f *Filter) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { _ = f.handle.Shutdown(divert.ShutdownRecv) })()
	defer f.end()
	ps := make([]divert.Packet, batch)
	for {
		if err := f.handle.SetReadDeadline(f.deadline()); err != nil {
			return err
		}
		n, err := f.handle.RecvBatch(ps)
		switch {
		case errors.Is(err, io.EOF) && ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return err
		}
		f.take(ps[:n])
	}
}

// deadline returns when something has waited long enough, the zero time if nothing waits.
func (f *Filter) deadline() (t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) > 0 {
		t = f.waiting[0].since.Add(holdTime)
	}
	return t
}

// take judges packets, and ends waiting that has lasted too long.
func (f *Filter) take(ps []divert.Packet) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range ps {
		f.packet(&ps[i])
	}
	now := time.Now()
	for len(f.waiting) > 0 && now.Sub(f.waiting[0].since) >= holdTime {
		f.waiting[0].late()
		f.waiting[0] = waiter{}
		f.waiting = f.waiting[1:]
	}
	f.flush()
}

// wait has something called late when it has waited from now on for too long.
func (f *Filter) wait(late func()) { f.waiting = append(f.waiting, waiter{time.Now(), late}) }

// packet judges a packet.
func (f *Filter) packet(p *divert.Packet) {
	h := &f.parsed
	if !h.Parse(p.Data) || h.TCPOff < 0 && h.UDPOff < 0 {
		f.accept(p)
		return
	}
	k := key{p.Src(), p.Dst()}
	if h.Fragment || h.Truncated {
		// No browser sends fragments to these ports; a hello in them could not be read.
		if port := k.server.Port(); h.TCPOff >= 0 && slices.Contains(f.config.Ports, port) || h.UDPOff >= 0 && slices.Contains(f.config.QUICPorts, port) {
			f.stats.Fragments++
			f.drop(p)
			return
		}
		f.accept(p)
		return
	}
	if h.UDPOff >= 0 {
		f.datagram(k, p)
		return
	}
	f.segment(k, p)
}

// accept lets a packet go on as it is.
func (f *Filter) accept(p *divert.Packet) {
	f.accepted = append(f.accepted, divert.Packet{Data: p.Data, Addr: p.Addr})
	if len(f.accepted) == divert.MaxBatch {
		f.flush()
	}
}

// flush lets those that were accepted go.
func (f *Filter) flush() {
	if len(f.accepted) > 0 {
		_, err := f.handle.AcceptBatch(f.accepted)
		f.check(err)
		clear(f.accepted)
		f.accepted = f.accepted[:0]
	}
}

// acceptFlow lets a packet go on with the rest of its flow.
func (f *Filter) acceptFlow(p *divert.Packet) {
	f.flush()
	err := f.handle.AcceptFlow(p)
	if errors.Is(err, divert.ErrInvalid) {
		err = f.handle.Accept(p)
	}
	f.check(err)
}

// send sends a packet behind those that were accepted.
func (f *Filter) send(p *divert.Packet) {
	f.flush()
	f.check(f.handle.Send(p))
}

// drop ends a packet.
func (f *Filter) drop(p *divert.Packet) { f.check(f.handle.Drop(p)) }

// check reports an error, unless the handle is closed.
func (f *Filter) check(err error) {
	if err != nil && f.config.Report != nil && !errors.Is(err, net.ErrClosed) {
		f.config.Report(err)
	}
}

// held returns a copy of a packet, to be sent anew. The packet itself is dropped: meanwhile it would count against the buffer
// of its socket, which would hold up the sender, or take a place in the queue.
func (f *Filter) held(p *divert.Packet) divert.Packet {
	c := p.Clone()
	f.drop(p)
	f.stats.Memory += len(c.Data)
	return c
}

// release ends the holding of packets: they go on, or nowhere.
func (f *Filter) release(p *divert.Packet, on bool) {
	f.stats.Memory -= len(p.Data)
	if on {
		f.send(p)
	}
}

// blocked tells of a connection.
func (f *Filter) blocked(k key, protocol, reason, host, entry string) {
	f.stats.Blocked++
	if f.config.Blocked != nil {
		f.config.Blocked(Event{time.Now(), protocol, reason, host, entry, k.client, k.server})
	}
}

// end lets go of all held packets.
func (f *Filter) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.tcp.len() > 0 {
		c := f.tcp.oldest()
		f.letGo(c, !f.config.FailClosed)
	}
	for f.udp.len() > 0 {
		f.udp.oldest().forget(f)
	}
	f.waiting = nil
	f.flush()
}
