package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
)

// letters are the flags that dump shares with tcpdump(1), for users who know them. docs/tcpdump.md has a table of all
// of tcpdump's flags.
type letters struct {
	way        choice // of packets
	times      int    // how often -t was given
	nano       bool
	number     bool
	ascii      bool
	hexASCII   int
	hex        int
	link       bool
	noSums     bool
	each       bool
	countOnly  bool
	filterFile string
	linkType   string

	listInterfaces, listTypes, compileOnly bool

	rotation
}

// The values of -Q.
const (
	wayBoth = iota
	wayIn
	wayOut
)

// meaningless are flags of tcpdump that are accepted and change nothing, with the reason.
var meaningless = []struct{ name, letter, why string }{
	{"no-names", "n", "addresses are never turned into names"},
	{"no-domain-names", "N", "addresses are never turned into names"},
	{"no-promiscuous-mode", "p", "handles see the packets of this host only"},
	{"line-buffered", "l", "lines come out as soon as no packet waits"},
	{"absolute-tcp-sequence-numbers", "S", "they are always absolute"},
	{"no-optimize", "O", "filters have no other form"},
	{"no-foreign", "f", "addresses are never turned into names"},
}

// refusedLetters are flags of tcpdump that a handle cannot honour, with the reason.
var refusedLetters = []struct{ letter, why string }{
	{"I", "-I, monitor mode, is about the link layer, and handles see IP packets"},
	{"H", "-H is about 802.11s, and handles see IP packets"},
	{"E", "-E, decrypting ESP, is not offered: write a file with -w and open it in Wireshark"},
	{"M", "-M, checking TCP-MD5, is not offered: write a file with -w and open it in Wireshark"},
	{"T", "-T, choosing a dissector, is not offered: write a file with -w and open it in Wireshark"},
	{"m", "-m, MIB modules, is not offered: write a file with -w and open it in Wireshark"},
	{"b", "-b, AS numbers of BGP, is not offered: write a file with -w and open it in Wireshark"},
	{"u", "-u, handles of NFS, is not offered: write a file with -w and open it in Wireshark"},
	{"j", "-j, types of time stamps, is not offered: times are those of the kernel when it queues or copies a packet"},
	{"J", "-J, types of time stamps, is not offered: times are those of the kernel when it queues or copies a packet"},
	{"V", "-V, a list of files, is not offered: run the command for each with -r"},
	{"B", "-B, the size of the operating system's buffer, is --queue-size here, in bytes"},
}

// add adds the flags.
func (l *letters) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	l.way.names = []string{"inout", "in", "out"}
	fl.VarP(&l.way, "direction", "Q", "only packets that come in or go out: in, out, inout")
	fl.CountVarP(&l.hex, "hex", "x", "also the bytes in hexadecimal")
	fl.CountVarP(&l.hexASCII, "hex-ascii", "X", "also the bytes in hexadecimal and ASCII")
	fl.BoolVarP(&l.ascii, "ascii", "A", false, "also the bytes in ASCII")
	fl.CountVarP(&l.times, "time", "t", "the time: -t none, -tt seconds since 1970, -ttt since the packet before, -tttt with the date, -ttttt since the first packet")
	fl.BoolVar(&l.nano, "nano", false, "times with nine digits")
	fl.BoolVar(new(bool), "micro", false, "times with six digits, the default")
	fl.BoolVarP(&l.number, "number", "#", false, "count the packets at the beginning of each line")
	fl.BoolVarP(&l.link, "link", "e", false, "also the interface's index, and the type and length of the packet; handles see no link-layer headers")
	fl.BoolVarP(&l.noSums, "dont-verify-checksums", "K", false, "do not check checksums, which -v does")
	fl.BoolVarP(&l.each, "packet-buffered", "U", false, "write each packet at once")
	fl.BoolVar(&l.each, "immediate-mode", false, "the same")
	fl.BoolVar(&l.countOnly, "count", false, "print only how many packets there were")
	fl.StringVarP(&l.filterFile, "filter-file", "F", "", "read the filter from a `file`")
	fl.StringVarP(&l.linkType, "linktype", "y", "", "the link type of the capture file: `RAW` is the only one")
	fl.BoolVarP(&l.listInterfaces, "list-interfaces", "D", false, "list the network interfaces and end")
	fl.BoolVarP(&l.listTypes, "list-data-link-types", "L", false, "list the link types of capture files and end")
	fl.BoolVarP(&l.compileOnly, "compile", "d", false, "show the program of the filter and end, like divert filter explain")
	l.rotation.add(cmd)
	for _, f := range meaningless {
		fl.CountP(f.name, f.letter, "nothing: "+f.why)
		_ = fl.MarkHidden(f.name)
	}
	for _, f := range refusedLetters {
		fl.VarP(refusedFlag(f.why), "tcpdump-"+f.letter, f.letter, f.why)
		fl.Lookup("tcpdump-" + f.letter).NoOptDefVal = "true"
		_ = fl.MarkHidden("tcpdump-" + f.letter)
	}
}

// refusedFlag is a flag of tcpdump that is refused; its value is the reason.
type refusedFlag string

// String returns nothing: the flag has no value.
func (refusedFlag) String() string { return "" }

// Type returns the word that the help would show.
func (refusedFlag) Type() string { return "refused" }

// Set refuses.
func (f refusedFlag) Set(string) error { return refusedError(f) }

// refusedError is the reason why a flag of tcpdump is refused.
type refusedError string

func (e refusedError) Error() string { return string(e) }

// check refuses letters that exclude each other, and those that are not supported.
func (l *letters) check(d *dump) error {
	switch {
	case l.linkType != "" && !strings.EqualFold(l.linkType, "RAW"):
		return usagef("--linktype %s: handles see IP packets without link-layer headers; the only link type is RAW", printable(l.linkType))
	case l.countOnly && d.write != "":
		return usagef("--count prints, and --write writes; choose one")
	case l.ascii && l.hex+l.hexASCII > 0:
		return usagef("--ascii and --hex cannot be combined; -X prints both")
	}
	return l.rotation.check(d.write)
}

// bytes returns how bytes are printed.
func (l *letters) bytes() bytesMode {
	switch {
	case l.ascii:
		return bytesASCII
	case l.hexASCII > 0:
		return bytesBoth
	case l.hex > 0:
		return bytesHex
	}
	return bytesNone
}

// filter returns the text of the filter: the arguments, or the file of -F.
func (l *letters) filter(args []string) (string, error) {
	if l.filterFile == "" {
		return filterText(args), nil
	}
	if len(args) > 0 {
		return "", usagef("the filter is given twice: in the file %s, and as %q", printable(l.filterFile), strings.Join(args, " "))
	}
	f, err := os.Open(l.filterFile)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFilterText))
	return filterText([]string{strings.TrimSpace(string(b))}), err
}

// narrow adds the direction of -Q to a filter that compiles, and returns its text.
func (l *letters) narrow(text string, p *filter.Program) (string, error) {
	if l.way.value == wayBoth {
		return text, nil
	}
	switch layer := p.Layer(); {
	case hasEvents(layer):
		return "", usagef("--direction applies to packets, but the layer %s has events", word(layer))
	case layer == divert.LayerForward:
		return "", usagef("--direction %s: forwarded packets do not begin or end here, so they have no direction", &l.way)
	}
	return narrow(text, p, []string{map[int]string{wayIn: "inbound", wayOut: "outbound"}[l.way.value]})
}

// interfaceTest returns the test for interfaces, names or numbers separated by commas; none if any interface will do.
// With byName it tests interfaces given by name by that name, so that it still holds when they are created again.
func interfaceTest(given []string, byName bool) (string, error) {
	var tests []string
	for _, names := range given {
		for name := range strings.SplitSeq(names, ",") {
			if name == "any" {
				return "", nil
			}
			i, named, err := interfaceIndex(name)
			if err != nil {
				return "", err
			}
			if named && byName {
				tests = append(tests, "iface == "+filter.QuoteName(name))
			} else {
				tests = append(tests, fmt.Sprintf("ifIdx == %d", i))
			}
		}
	}
	return strings.Join(tests, " or "), nil
}

// instead does the work of letters that ask for something other than a capture, and reports whether there were any.
func (l *letters) instead(d *dump) (done bool, err error) {
	switch {
	case l.listInterfaces:
		return true, listInterfaces(d.app.out)
	case l.listTypes:
		_, err := fmt.Fprintln(d.app.out, "Data link types (use option -y to set):\n  RAW (Raw IP)")
		return true, err
	case l.compileOnly:
		return true, explain(d.app.out, d.text, d.program, &d.flags.dialectFlags)
	}
	return false, nil
}

// listInterfaces prints the network interfaces in tcpdump's format.
func listInterfaces(w io.Writer) error {
	list, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, i := range list {
		var flags []string
		for _, f := range []struct {
			flag net.Flags
			name string
		}{{net.FlagUp, "Up"}, {net.FlagRunning, "Running"}, {net.FlagLoopback, "Loopback"}, {net.FlagPointToPoint, "Point to point"}} {
			if i.Flags&f.flag != 0 {
				flags = append(flags, f.name)
			}
		}
		if _, err := fmt.Fprintf(w, "%d.%s [%s]\n", i.Index, printable(i.Name), strings.Join(flags, ", ")); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(w, "any (all of them)")
	return err
}

// stamp appends the time of a packet in the form that -t selects, and a blank unless it is empty.
func (p *printer) stamp(b []byte, when time.Time) []byte {
	digits, layout := 6, shortTime
	if p.nano || p.verbose > 0 && p.times == 0 {
		digits, layout = 9, "15:04:05.000000000"
	}
	if p.verbose > 0 && p.times == 0 || p.times == 4 {
		layout = "2006-01-02 " + layout
	}
	if p.first.IsZero() {
		p.first, p.before = when, when
	}
	defer func() { p.before = when }()
	switch p.times {
	case 1:
		return b
	case 2:
		b = appendSeconds(b, time.Duration(when.UnixNano()), digits)
	case 3:
		b = appendSince(b, when.Sub(p.before), digits)
	case 5:
		b = appendSince(b, when.Sub(p.first), digits)
	default:
		b = when.AppendFormat(b, layout)
	}
	return append(b, ' ')
}

// appendSeconds appends a time in seconds with a number of decimals.
func appendSeconds(b []byte, d time.Duration, digits int) []byte {
	if d < 0 {
		b, d = append(b, '-'), -d
	}
	b = append(appendNumber(b, int64(d/time.Second)), '.')
	return appendFraction(b, d%time.Second, digits)
}

// appendSince appends a time as hours, minutes and seconds.
func appendSince(b []byte, d time.Duration, digits int) []byte {
	sign := byte(' ')
	if d < 0 {
		sign, d = '-', -d
	}
	b = append(b, sign)
	b = append(appendTwo(b, int64(d/time.Hour)), ':')
	b = append(appendTwo(b, int64(d/time.Minute%60)), ':')
	b = append(appendTwo(b, int64(d/time.Second%60)), '.')
	return appendFraction(b, d%time.Second, digits)
}

func appendTwo(b []byte, v int64) []byte {
	if v < 10 {
		b = append(b, '0')
	}
	return appendNumber(b, v)
}

func appendFraction(b []byte, d time.Duration, digits int) []byte {
	unit := time.Second
	for range digits {
		unit /= 10
		b = append(b, byte('0'+d/unit%10))
	}
	return b
}

// countSink counts packets and prints only their number.
type countSink struct {
	noStatistics
	out io.Writer
	n   int
}

func (s *countSink) write(*record) error { s.n++; return nil }
func (s *countSink) flush() error        { return nil }
func (s *countSink) close() error {
	_, err := fmt.Fprintln(s.out, countOf(s.n, "packet"))
	return err
}
