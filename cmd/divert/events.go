package main

import (
	"bufio"
	"context"
	"io"
	"net/netip"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
	"github.com/opendivert/divert/process"
	"github.com/spf13/cobra"
)

// addEvents adds the flags of a command whose handle is at a layer with events.
func (f *handleFlags) addEvents(cmd *cobra.Command, layer divert.Layer) {
	f.layers = []divert.Layer{layer}
	f.choice.names = wordsOf(f.layers)
	cmd.ValidArgsFunction = f.completeFilter
	f.engine.names = wordsOf(engines)
	fl := cmd.Flags()
	fl.BoolVar(&f.strict, "strict", false, "filter language of WinDivert 2.2 to the letter, without extensions")
	fl.Int16Var(&f.priority, "priority", 0, "events meet handles from the highest priority to the lowest, 30000 to -30000")
	if layer != divert.LayerReflect {
		addChoice(cmd, &f.engine, "engine", "engine that decides which events match")
	}
	if layer != divert.LayerReflect {
		f.scope.addProcess(cmd)
	}
	addDriver(cmd, &f.driver)
	fl.IntVar(&f.queueLength, "queue-length", maxQueueLength, "events that may wait for the program, 32 to 16384")
	fl.DurationVar(&f.queueTime, "queue-time", maxQueueTime, "how long an event may wait, 100ms to 16s")
	fl.IntVar(&f.queueSize, "queue-size", maxQueueSize, "bytes that may wait, 65535 to 33554432")
}

// eachEvent passes the events of a handle to f, as many as the scope allows, until ctx ends and the queue is empty. It
// calls idle whenever the queue is empty, and at the end.
func eachEvent(ctx context.Context, h *divert.Handle, s *scope, f func(*divert.Packet) error, idle func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = h.Shutdown(divert.ShutdownRecv) }) // fails only on a closed handle, which ends the run too
	defer stop()
	ps := make([]divert.Packet, dumpBatch)
	for seen := 0; s.count == 0 || seen < s.count; {
		if s.count > 0 {
			ps = ps[:min(len(ps), s.count-seen)]
		}
		n, err := h.RecvBatch(ps)
		if err == io.EOF {
			return idle()
		}
		if err != nil {
			return err
		}
		s.metrics.observe(ps[:n])
		for i := range ps[:n] {
			if err := f(&ps[i]); err != nil {
				return err
			}
		}
		seen += n
		if n < len(ps) {
			if err := idle(); err != nil {
				return err
			}
		}
	}
	return idle()
}

// processes names the programs of processes.
type processes struct {
	lookup func(pid uint32, name string) (process.Process, error)
}

func newProcesses() *processes { return &processes{lookup: new(process.Cache).LookupNamed} }

// path returns the path of a process's program, "" if it cannot be found.
func (m *processes) path(pid uint32) string {
	p, _ := m.lookup(pid, "")
	if runtime.GOOS == "windows" && pid == windowsKernel {
		return "Windows"
	}
	return p.Executable
}

// windowsKernel is the process id of the Windows kernel, which has no program (specification: samples.md 6).
const windowsKernel = 4

// program returns the file name of a process's program; if the program is secret or the process has ended, the
// process's name; if both are missing, "???". name is the name the process had when it was seen, "" if unknown.
func (m *processes) program(pid uint32, name string) string {
	if path := m.path(pid); path != "" {
		return filepath.Base(path)
	}
	if p, err := m.lookup(pid, name); err == nil && p.Name != "" {
		return p.Name
	}
	return "???"
}

// eventPrinter prints the events of the layers SOCKET, FLOW and REFLECT.
type eventPrinter struct {
	w         *bufio.Writer
	json      bool
	quiet     bool // print less of each event
	verbose   bool // print all fields too
	colour    bool
	clock     *wallClock
	processes *processes
	buf       []byte
}

func newEventPrinter(a *app, asJSON bool) *eventPrinter {
	return &eventPrinter{
		w: bufio.NewWriterSize(a.out, bufferSize), json: asJSON, colour: a.colour,
		clock: newWallClock(), processes: newProcesses(),
	}
}

func (p *eventPrinter) flush() error { return p.w.Flush() }

// jsonEvent is an event of the layers SOCKET and FLOW as JSON.
type jsonEvent struct {
	Time         time.Time   `json:"time"` // RFC 3339, UTC, nanoseconds
	Timestamp    int64       `json:"timestamp"`
	Layer        string      `json:"layer"`
	Event        string      `json:"event"`
	PID          uint32      `json:"pid"`
	Program      string      `json:"program,omitempty"` // path
	Name         string      `json:"name,omitempty"`    // of the process, at the moment of the event
	Endpoint     uint64      `json:"endpoint"`
	Parent       uint64      `json:"parent,omitempty"`
	Protocol     uint8       `json:"protocol"`
	ProtocolName string      `json:"protocol_name,omitempty"`
	Direction    string      `json:"direction"` // in, out
	Loopback     bool        `json:"loopback,omitempty"`
	IPv6         bool        `json:"ipv6,omitempty"`
	Refused      bool        `json:"refused,omitempty"`
	Local        *netip.Addr `json:"local,omitempty"`
	LocalPort    uint16      `json:"lport,omitempty"`
	Remote       *netip.Addr `json:"remote,omitempty"`
	RemotePort   uint16      `json:"rport,omitempty"`
}

// eventPrinters print the events of each layer.
var eventPrinters = [packet.NumLayers]func(*eventPrinter, *divert.Packet) error{
	divert.LayerFlow: (*eventPrinter).flow, divert.LayerSocket: (*eventPrinter).socket, divert.LayerReflect: (*eventPrinter).reflect,
}

// print prints an event of any layer that has events.
func (p *eventPrinter) print(e *divert.Packet) error { return eventPrinters[e.Addr.Layer](p, e) }

// socket prints an event of SOCKET or FLOW.
func (p *eventPrinter) socket(e *divert.Packet) error {
	a, d := &e.Addr, e.Addr.Flow()
	if p.json {
		return p.socketJSON(a, &d)
	}
	b := p.time(p.buf[:0], a.Timestamp)
	b = p.coloured(b, eventStyles[a.Event], a.Event.String())
	b = append(b, " pid="...)
	b = strconv.AppendUint(b, uint64(d.ProcessID), 10)
	if !p.quiet {
		b = append(append(b, " program="...), printable(p.processes.program(d.ProcessID, a.ProcessName()))...)
		b = strconv.AppendUint(append(b, " endpoint="...), d.EndpointID, 10)
		b = strconv.AppendUint(append(b, " parent="...), d.ParentEndpointID, 10)
	}
	b = appendProtocol(append(b, " protocol="...), d.Protocol)
	b = appendSide(b, " local=", d.LocalAddr, d.LocalPort)
	b = appendSide(b, " remote=", d.RemoteAddr, d.RemotePort)
	if refused(a) {
		b = append(b, " refused"...)
	}
	b = append(b, '\n')
	if p.verbose {
		b = p.socketFields(b, a, &d)
	}
	return p.write(b)
}

// write writes the contents of the buffer.
func (p *eventPrinter) write(b []byte) error {
	p.buf = b
	_, err := p.w.Write(b)
	return err
}

// socketFields appends a line with the names and values of the filter language.
func (p *eventPrinter) socketFields(b []byte, a *divert.Address, d *packet.FlowData) []byte {
	b = p.coloured(append(b, '\t'), styleProto, "event")
	b = append(append(b, " event="...), a.Event.String()...)
	b = appendFlag(b, "outbound", a.Outbound)
	b = appendFlag(b, "loopback", a.Loopback)
	b = appendNumber(append(b, " protocol="...), d.Protocol)
	b = appendNumber(append(b, " processId="...), d.ProcessID)
	b = appendNumber(append(b, " endpointId="...), d.EndpointID)
	b = appendNumber(append(b, " parentEndpointId="...), d.ParentEndpointID)
	b = d.LocalAddr.AppendTo(append(b, " localAddr="...))
	b = appendNumber(append(b, " localPort="...), d.LocalPort)
	b = d.RemoteAddr.AppendTo(append(b, " remoteAddr="...))
	b = appendNumber(append(b, " remotePort="...), d.RemotePort)
	return append(appendNumber(append(b, " timestamp="...), a.Timestamp), '\n')
}

// refused reports whether a handle refused the operation that an event describes.
func refused(a *divert.Address) bool { return a.Layer == divert.LayerSocket && !a.Sniffed }

// eventStyles are the styles of the events that stand out.
var eventStyles = [packet.NumEvents]style{
	packet.EventFlowEstablished: styleInfo, packet.EventFlowDeleted: styleBad,
	packet.EventSocketBind: styleInfo, packet.EventSocketConnect: styleInfo, packet.EventSocketListen: styleInfo,
	packet.EventSocketAccept: styleInfo, packet.EventSocketClose: styleBad,
	packet.EventReflectOpen: styleInfo, packet.EventReflectClose: styleBad,
}

// time appends the time of an event.
func (p *eventPrinter) time(b []byte, timestamp int64) []byte {
	if p.colour {
		b = append(b, styleTime.begin...)
	}
	layout := shortTime
	if p.verbose {
		layout = longTime
	}
	b = p.clock.time(timestamp).AppendFormat(b, layout)
	if p.colour {
		b = append(b, styleEnd...)
	}
	return append(b, ' ')
}

// coloured appends a text in a style.
func (p *eventPrinter) coloured(b []byte, s style, text string) []byte {
	if !p.colour || s.begin == "" {
		return append(b, text...)
	}
	return append(append(append(b, s.begin...), text...), styleEnd...)
}

// appendSide appends one side of an event if it has that side.
func appendSide(b []byte, name string, addr netip.Addr, port uint16) []byte {
	if !hasSide(addr, port) {
		return b
	}
	b = append(append(b, name...), '[')
	b = addr.AppendTo(b)
	return strconv.AppendUint(append(b, "]:"...), uint64(port), 10)
}

// hasSide reports whether an event has a side (specification: samples.md 7).
func hasSide(addr netip.Addr, port uint16) bool { return addr != netip.IPv6Unspecified() || port != 0 }

func (p *eventPrinter) socketJSON(a *divert.Address, d *packet.FlowData) error {
	j := jsonEvent{
		Time: p.clock.time(a.Timestamp).UTC(), Timestamp: a.Timestamp, Layer: word(a.Layer), Event: a.Event.String(),
		PID: d.ProcessID, Program: p.processes.path(d.ProcessID), Name: a.ProcessName(), Endpoint: d.EndpointID, Parent: d.ParentEndpointID,
		Protocol: d.Protocol, ProtocolName: protocolNames[d.Protocol], Direction: "in", Loopback: a.Loopback, IPv6: a.IPv6,
		Refused: refused(a), LocalPort: d.LocalPort, RemotePort: d.RemotePort,
	}
	if a.Outbound {
		j.Direction = "out"
	}
	if hasSide(d.LocalAddr, d.LocalPort) {
		j.Local = &d.LocalAddr
	}
	if hasSide(d.RemoteAddr, d.RemotePort) {
		j.Remote = &d.RemoteAddr
	}
	return p.line(j)
}

// line prints a value as a line of JSON.
func (p *eventPrinter) line(v any) error {
	b, err := appendJSONLine(p.buf[:0], v)
	if err != nil {
		return err
	}
	return p.write(b)
}
