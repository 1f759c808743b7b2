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

// Config has the settings of a Filter. Only Hosts is required.
type Config struct {
	Hosts *Hosts // the names to block; the list may change at any time

	// Ports are the server ports whose TCP connections are judged, HTTP and TLS alike; the default is 80 and 443.
	// QUICPorts are those for QUIC; the default is 443.
	Ports, QUICPorts []uint16

	// Where, if not empty, is a further filter for the connections, such as processId == 4711. It must hold for the
	// packets of both directions alike: localAddr and remoteAddr do, ip.SrcAddr does not.
	Where string

	// Layer is LayerNetwork for connections of this host, LayerForward for those it routes (Linux). Both directions must
	// pass this host.
	Layer divert.Layer

	// FailClosed ends connections that cannot be judged: no name within 16 KiB or 2 s, no memory for waiting packets, or,
	// if older than the Filter, no request or hello next. Without it they pass.
	FailClosed bool

	// BlockNameless blocks connections that name no host: a hello without server name, a request without Host, unreadable
	// QUIC, other protocols on these ports. Without it they pass.
	BlockNameless bool

	Page      []byte // body of the answer to blocked HTTP requests, HTML in UTF-8, at most MaxPage bytes; nil: a built-in page
	MaxFlows  int    // connections to remember, of TCP and of QUIC each; 0: 16384
	MaxMemory int    // bytes of all connections that may wait or be kept for comparison; 0: 64 MiB

	Blocked func(Event) // is called for each blocked connection; it must not call the Filter
	Report  func(error) // gets the errors of packets that could not be sent; it must not call the Filter

	// Open opens the handle; the default is divert.OpenProgram. Tests use the method OpenProgram of a diverttest.Network.
	Open func(*filter.Program, ...divert.Option) (*divert.Handle, error)
	// Options are further options for the handle, such as divert.WithPriority.
	Options []divert.Option
}

// MaxPage is the greatest length of a block page, in bytes.
const MaxPage = 8 << 10

// The limits of packets that wait for a name.
const (
	holdTime    = 2 * time.Second
	maxUnacked  = 64 << 10 // judged bytes of a connection that are not acknowledged
	quietHolds  = 2        // packets held before the client is told that they have arrived
	maxHeldUDP  = 16       // datagrams of a QUIC connection that may wait
	maxAttempts = 8        // QUIC connections between two ports to remember
)

// Event is a blocked connection.
type Event struct {
	Time     time.Time      `json:"time"`
	Protocol string         `json:"protocol"`        // http, tls, quic, or other
	Reason   string         `json:"reason"`          // listed, nameless, ambiguous, too-long, late, no-memory
	Host     string         `json:"host,omitempty"`  // the name from the client; it may hold any printable ASCII
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

// Stats has the counters of a Filter. A name counts each time it is judged: in HTTP for each request.
type Stats struct {
	HTTP, TLS, QUIC uint64 // requests, hellos and QUIC connections judged
	Blocked         uint64 // blocked ones of these and of nameless connections
	Other           uint64 // connections of other protocols, or without a beginning, that passed
	FailedOpen      uint64 // connections that passed because they could not be judged
	Differing       uint64 // packets dropped because they repeat bytes with changes
	Fragments       uint64 // dropped fragments of clients, and truncated packets

	Flows  int // connections remembered now
	Memory int // bytes waiting or kept now
}

// Filter blocks web sites. Its methods may be called from several goroutines.
type Filter struct {
	config Config
	handle *divert.Handle

	mu       sync.Mutex
	stats    Stats
	tcp      table[*connection]
	udp      table[*exchange]
	waiting  []waiter // by time, the longest wait first
	accepted []divert.Packet

	parsed packet.Parsed
	buffer []byte
}

// waiter is a connection or exchange that holds packets.
type waiter struct {
	since time.Time
	late  func() // ends the wait, if it has not ended
}

// Open opens a filter. Packets wait for it from then on, so Run should follow at once. It fails with divert.ErrInvalid if
// the configuration is invalid, a *filter.Error if Where does not compile, or the errors of divert.Open; ErrNotSupported
// can also mean that clients could not be answered (divert.WithInbound).
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

// text returns the filter: TCP both ways, and for QUIC the client's packets with long headers, which begin connections.
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

// Close closes the handle. A running Run fails with net.ErrClosed.
func (f *Filter) Close() error { return f.handle.Close() }

// batch is the number of packets received at a time.
const batch = 128

// Run judges connections until ctx ends; then packets that wait for a name pass, or with FailClosed are dropped, and Run
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

// deadline returns the time at which the longest wait must end, the zero time if nothing waits.
func (f *Filter) deadline() (t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) > 0 {
		t = f.waiting[0].since.Add(holdTime)
	}
	return t
}

// take judges packets, and ends waits that have lasted too long.
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

// wait has late called after the longest allowed wait, counted from now.
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
		// Browsers send no fragments to these ports; a hello in them could not be read.
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

// flush sends the accepted packets on.
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

// send sends a packet behind the accepted ones.
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

// held returns a copy of a packet, to be sent anew. The packet itself is dropped: otherwise it would count against the
// buffer of its socket, which would hold up the sender, or take a place in the queue.
func (f *Filter) held(p *divert.Packet) divert.Packet {
	c := p.Clone()
	f.drop(p)
	f.stats.Memory += len(c.Data)
	return c
}

// release ends the holding of packets: they go on, or are dropped.
func (f *Filter) release(p *divert.Packet, on bool) {
	f.stats.Memory -= len(p.Data)
	if on {
		f.send(p)
	}
}

// blocked reports a blocked connection.
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
