package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
	"github.com/spf13/cobra"
)

// eval is one run of `divert filter eval`.
type eval struct {
	app     *app
	flags   dialectFlags
	packets []string // in hexadecimal
	read    string   // capture file

	outbound, loopback, impostor bool
	ifIdx                        uint32
	verbose, json                bool

	program *filter.Program
	printer printer
	w       *bufio.Writer
	matches int
	buf     []byte
}

func newFilterEval(a *app) *cobra.Command {
	e := &eval{app: a}
	cmd := &cobra.Command{
		Use:   "eval [flags] FILTER",
		Short: "Show which packets a filter matches",
		Long: `Show which packets a filter matches. Packets come in hexadecimal, an IP header first, with -p or as lines of
standard input, or from a capture file with -r. With -v each test is shown that was executed, the value
it saw and where it led.

The exit status is 0 whether packets match or not; 1 if one cannot be evaluated.`,
		Example: `  divert filter eval -v tcp.DstPort == 80 -p 4500002800010000400666cd0a0000010a000002c3500050000000010000000050022000b83e0000
  divert filter eval --outbound --ifidx 2 'outbound and ifIdx == 2' < packets.txt
  divert filter eval udp -r trace.pcapng`,
		Args: filterArguments,
		RunE: func(_ *cobra.Command, args []string) error { return e.run(args) },
	}
	e.flags.add(cmd, packetLayers)
	fl := cmd.Flags()
	fl.StringArrayVarP(&e.packets, "packet", "p", nil, "a packet in `hex`adecimal; may be given several times")
	fl.StringVarP(&e.read, "read", "r", "", "read a pcap or pcapng `file`; - is standard input")
	fl.BoolVar(&e.outbound, "outbound", false, "the packets are outbound (otherwise inbound, or as the file says)")
	fl.BoolVar(&e.loopback, "loopback", false, "the packets are loopback packets")
	fl.BoolVar(&e.impostor, "impostor", false, "the packets are impostors")
	fl.Uint32Var(&e.ifIdx, "ifidx", 0, "index of the packets' interface")
	addJSON(cmd, &e.json, "one JSON object per packet")
	fl.BoolVarP(&e.verbose, "verbose", "v", false, "show each test")
	return cmd
}

func (e *eval) run(args []string) (err error) {
	if e.read != "" && e.packets != nil {
		return usagef("--read and --packet cannot be combined")
	}
	if e.program, err = e.flags.compile(args); err != nil {
		return err
	}
	if err := e.flags.sets.load(e.program); err != nil {
		return err
	}
	if e.program, err = e.program.WithInterfaces(localInterface); err != nil {
		return err
	}
	e.printer.colour = e.app.colour
	e.w = bufio.NewWriterSize(e.app.out, bufferSize)
	count, err := e.all()
	if err == nil && count > 1 && !e.json {
		fmt.Fprintf(e.w, "%d of %d packets match\n", e.matches, count)
	}
	if flushed := e.w.Flush(); err == nil {
		err = flushed
	}
	return err
}

// all evaluates the packets of the source named by the flags and returns their number.
func (e *eval) all() (int, error) {
	switch {
	case e.read != "":
		return e.file()
	case e.packets != nil:
		for i, text := range e.packets {
			if err := e.hex(i+1, text); err != nil {
				return i, err
			}
		}
		return len(e.packets), nil
	}
	count := 0
	lines := bufio.NewScanner(e.app.in)
	lines.Buffer(nil, 4*divert.MaxPacket)
	for lines.Scan() {
		text := strings.TrimSpace(lines.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		count++
		if err := e.hex(count, text); err != nil {
			return count, err
		}
	}
	return count, lines.Err()
}

// hex evaluates a packet in hexadecimal; it ignores spaces, colons and a leading 0x.
func (e *eval) hex(number int, text string) error {
	digits := strings.NewReplacer(" ", "", "\t", "", ":", "").Replace(strings.TrimPrefix(text, "0x"))
	data, err := hex.DecodeString(digits)
	var wrong hex.InvalidByteError
	switch {
	case errors.As(err, &wrong):
		return usagef("packet %d is not hexadecimal: it has %q", number, rune(wrong))
	case err != nil:
		return usagef("packet %d has an odd number of hexadecimal digits", number)
	}
	var p packet.Parsed
	if !p.Parse(data) {
		return fmt.Errorf("packet %d is not an IP packet, or its header is damaged", number)
	}
	addr := divert.Address{Layer: e.program.Layer(), IPv6: p.Family == 6}
	return e.packet(&record{data: data, length: len(data), addr: &addr, when: time.Unix(0, 0)}, number)
}

// file evaluates the packets of a capture file.
func (e *eval) file() (count int, err error) {
	in := e.app.in
	if e.read != "-" {
		f, err := os.Open(e.read)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		in = f
	}
	c, err := newCaptureReader(in, e.program.Layer())
	if err != nil {
		return 0, err
	}
	var r record
	for {
		if err := c.next(&r); err == io.EOF {
			for _, text := range c.Complaints() {
				(&report{app: e.app, json: e.json}).warn(errors.New(text))
			}
			return count, nil
		} else if err != nil {
			return count, err
		}
		count++
		if err := e.packet(&r, count); err != nil {
			return count, err
		}
	}
}

// packet evaluates a packet and prints the outcome.
func (e *eval) packet(r *record, number int) error {
	r.addr.Outbound = r.addr.Outbound || e.outbound
	r.addr.Loopback, r.addr.Impostor = e.loopback, e.impostor
	r.addr.SetNetwork(packet.NetworkData{IfIdx: e.ifIdx})
	steps, matched, err := e.program.Explain(r.data, r.addr)
	if err != nil {
		return fmt.Errorf("packet %d: %w", number, err)
	}
	if e.json {
		j := jsonResult{Packet: number, Matches: matched}
		for _, s := range steps {
			if e.verbose {
				j.Steps = append(j.Steps, jsonStep{s.Index, s.Test, s.Value, s.Result})
			}
		}
		if e.buf, err = appendJSONLine(e.buf[:0], &j); err == nil {
			_, err = e.w.Write(e.buf)
		}
		return err
	}
	outcome, style := "no match", styleBad
	if matched {
		outcome, style = "match", styleInfo
		e.matches++
	}
	b := appendNumber(e.buf[:0], number)
	b = append(b, ": "...)
	b = e.printer.end(append(e.printer.begin(b, style), outcome...))
	b = append(b, "  "...)
	e.printer.parsed.Parse(r.data)
	b = append(e.printer.appendPacket(b, r.data), '\n')
	if e.verbose {
		for _, s := range steps {
			b = append(append(append(b, '\t'), s.String()...), '\n')
		}
	}
	e.buf = b
	_, err = e.w.Write(b)
	return err
}
