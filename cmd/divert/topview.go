package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// topBy is the kind of rows in a view.
type topBy int

const (
	byProcess topBy = iota
	byFlow
	byHost
)

var topByNames = []string{"process", "flow", "host"}

// topSort is the order of rows.
type topSort int

const (
	sortRate topSort = iota
	sortIn
	sortOut
	sortTotal
	sortPackets
	sortName
)

var topSortNames = []string{"rate", "in", "out", "total", "packets", "name"}

// topRow is a row of a view, a copy that the counter does not change.
type topRow struct {
	*meter
	name   string // the first column's text: printable
	pid    uint32
	flows  int
	flow   *topFlow // of byFlow: key and state only
	filter string   // matches the packets of the row; "" if no filter does
	tcp    bool     // the row has connections that can be reset
}

// rows returns the first rows of a view in an order, reversed if reverse is set: at most so many, or all if most is 0.
func (c *counter) rows(by topBy, order topSort, reverse bool, most int) []topRow {
	c.mu.Lock()
	defer c.mu.Unlock()
	var rows []topRow
	switch by {
	case byProcess:
		for _, p := range c.procs {
			r := topRow{meter: &p.meter, name: processLabel(p), pid: p.pid, flows: p.flows, tcp: true}
			if p.pid != 0 {
				r.filter = fmt.Sprintf("processId == %d", p.pid)
			}
			if p.pid != 0 || p.topCounts != (topCounts{}) {
				rows = append(rows, r)
			}
		}
		if c.gone != (topCounts{}) {
			rows = append(rows, topRow{meter: &meter{topCounts: c.gone}, name: "(earlier)"})
		}
	case byFlow:
		for _, f := range c.flows {
			rows = append(rows, topRow{meter: &f.meter, name: processLabel(f.process), pid: f.process.pid, flow: f, tcp: f.key.protocol == 6})
		}
	case byHost:
		for _, h := range c.hosts {
			r := topRow{meter: &h.meter, name: "(others)", flows: h.flows, tcp: true}
			if h.addr.IsValid() {
				r.name, r.filter = h.addr.String(), "remoteAddr == "+h.addr.WithZone("").String()
			}
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b topRow) int {
		n := cmp.Or(compareRows(order, &a, &b), -cmp.Compare(a.BytesIn+a.BytesOut, b.BytesIn+b.BytesOut), cmp.Compare(a.name, b.name),
			cmp.Compare(a.pid, b.pid), compareFlows(a.flow, b.flow))
		if reverse {
			return -n
		}
		return n
	})
	if most > 0 && len(rows) > most {
		rows = rows[:most]
	}
	for i := range rows {
		m := *rows[i].meter
		rows[i].meter = &m
		if f := rows[i].flow; f != nil {
			if !f.excess {
				rows[i].filter = flowFilter(f.key)
			}
			rows[i].flow = &topFlow{key: f.key, both: f.both, excess: f.excess, finished: f.finished, other: &topProc{pid: f.other.pid, name: f.other.name}}
		}
	}
	return rows
}

// compareFlows orders flows by their ends.
func compareFlows(a, b *topFlow) int {
	if a == nil || b == nil {
		return 0
	}
	return cmp.Or(a.key.local.Compare(b.key.local), a.key.remote.Compare(b.key.remote), cmp.Compare(a.key.protocol, b.key.protocol))
}

// compareRows orders rows, the greatest first, names from a to z.
func compareRows(order topSort, a, b *topRow) int {
	switch order {
	case sortIn:
		return -cmp.Compare(a.in, b.in)
	case sortOut:
		return -cmp.Compare(a.out, b.out)
	case sortTotal:
		return -cmp.Compare(a.BytesIn+a.BytesOut, b.BytesIn+b.BytesOut)
	case sortPackets:
		return -cmp.Compare(a.packets, b.packets)
	case sortName:
		return cmp.Compare(a.name, b.name)
	}
	return -cmp.Compare(a.in+a.out, b.in+b.out)
}

// processLabel returns the name under which a process is shown.
func processLabel(p *topProc) string {
	if p.pid == 0 {
		return "(no process)"
	}
	return printable(p.name)
}

// flowFilter returns the filter of a flow.
func flowFilter(k topFlowKey) string {
	ends := func(local, remote netip.AddrPort) string {
		text := fmt.Sprintf("localAddr == %v and remoteAddr == %v", local.Addr().WithZone(""), remote.Addr().WithZone(""))
		if k.protocol == 6 || k.protocol == 17 {
			text += fmt.Sprintf(" and localPort == %d and remotePort == %d", local.Port(), remote.Port())
		}
		return text
	}
	test := fmt.Sprintf("protocol == %d", k.protocol)
	if k.local.Addr() == k.remote.Addr() || k.local.Addr().IsLoopback() { // from this host to itself: either end may be the local one
		return fmt.Sprintf("%s and (%s or %s)", test, ends(k.local, k.remote), ends(k.remote, k.local))
	}
	return test + " and " + ends(k.local, k.remote)
}

// topView is the content of a screen of top.
type topView struct {
	by       topBy
	order    topSort
	reverse  bool
	filter   string
	layer    string
	rows     []topRow
	total    meter
	at       int    // index of the next interval in the histories
	lost     uint64 // packets that were not counted
	selected int    // selected row, -1: none
	first    int    // the row at the top
	paused   bool
	status   string          // a message, shown in place of the keys
	prompt   string          // the text typed so far, if typing
	typing   bool            //
	marks    map[string]rune // actions on rows, by filter
	help     bool
}

// topLine is a line of a screen.
type topLine struct {
	text string
	kind topKind
}

// topKind is the kind of a line, for its style.
type topKind int

const (
	lineText topKind = iota
	lineTitle
	lineHeading
	lineSelected
	lineStatus
)

// topColumn is a column of a view.
type topColumn struct {
	title string
	width int // 0: the rest of the line
	left  bool
	from  int // shown only on screens at least this wide
	until int // and narrower than this, if it is not 0
	text  func(v *topView, r *topRow) string
}

// Columns that several views share.
var (
	columnIn      = topColumn{title: "IN/s", width: 7, text: func(_ *topView, r *topRow) string { return bytesText(r.in) }}
	columnOut     = topColumn{title: "OUT/s", width: 7, text: func(_ *topView, r *topRow) string { return bytesText(r.out) }}
	columnSumIn   = topColumn{title: "IN", width: 7, text: func(_ *topView, r *topRow) string { return bytesText(float64(r.BytesIn)) }}
	columnSumOut  = topColumn{title: "OUT", width: 7, text: func(_ *topView, r *topRow) string { return bytesText(float64(r.BytesOut)) }}
	columnPackets = topColumn{title: "PKT/s", width: 7, from: 100, text: func(_ *topView, r *topRow) string { return bytesText(r.packets) }}
	columnCount   = topColumn{title: "PACKETS", width: 8, from: 100, text: func(_ *topView, r *topRow) string { return bytesText(float64(r.PacketsIn + r.PacketsOut)) }}
	columnHistory = topColumn{title: "HISTORY", width: 40, left: true, from: 160, text: func(v *topView, r *topRow) string { return sparkline(r.meter, v.at, 40) }}
	columnFlows   = topColumn{title: "FLOWS", width: 6, text: func(_ *topView, r *topRow) string { return strconv.Itoa(r.flows) }}
	columnMark    = topColumn{title: "", width: 1, text: func(v *topView, r *topRow) string {
		if m, ok := v.marks[r.filter]; ok && r.filter != "" {
			return string(m)
		}
		return ""
	}}
)

var topColumns = [...][]topColumn{
	byProcess: {
		columnMark,
		{title: "PID", width: 8, text: func(_ *topView, r *topRow) string {
			if r.pid == 0 {
				return "-"
			}
			return strconv.FormatUint(uint64(r.pid), 10)
		}},
		{title: "PROGRAM", left: true, text: func(_ *topView, r *topRow) string { return r.name }},
		columnFlows, columnIn, columnOut, columnSumIn, columnSumOut, columnPackets, columnCount, columnHistory,
	},
	byFlow: {
		columnMark,
		{title: "PROGRAM", width: 12, left: true, text: func(_ *topView, r *topRow) string { return r.name }},
		{title: "PID", width: 8, from: 120, text: func(_ *topView, r *topRow) string { return strconv.FormatUint(uint64(r.pid), 10) }},
		{title: "PROTO", width: 5, left: true, text: func(_ *topView, r *topRow) string {
			if r.flow.excess {
				return "-"
			}
			return string(appendProtocol(nil, r.flow.key.protocol))
		}},
		{title: "LOCAL", width: 45, left: true, from: 160, text: func(_ *topView, r *topRow) string { return endText(r.flow, r.flow.key.local) }},
		{title: "LOCAL PORT", width: 10, until: 160, text: func(_ *topView, r *topRow) string { return portText(r.flow.key.local) }},
		{title: "REMOTE", left: true, text: func(_ *topView, r *topRow) string {
			text := endText(r.flow, r.flow.key.remote)
			if r.flow.both && r.flow.other.pid != 0 {
				text += " (" + printable(r.flow.other.name) + ")"
			}
			return text
		}},
		columnIn, columnOut, columnSumIn, columnSumOut, columnPackets, columnHistory,
	},
	byHost: {
		columnMark,
		{title: "HOST", left: true, text: func(_ *topView, r *topRow) string { return r.name }},
		columnFlows, columnIn, columnOut, columnSumIn, columnSumOut, columnPackets, columnCount, columnHistory,
	},
}

func endText(f *topFlow, end netip.AddrPort) string {
	switch {
	case f.excess:
		return "(others)"
	case f.key.protocol == 6 || f.key.protocol == 17:
		return end.String()
	}
	return end.Addr().String()
}

func portText(end netip.AddrPort) string {
	if end.Port() == 0 {
		return "-"
	}
	return strconv.Itoa(int(end.Port()))
}

// bytesText writes a number with three digits and a unit of 1000: 7, 999, 1.20k, 12.3M.
func bytesText(n float64) string {
	units := []string{"", "k", "M", "G", "T", "P", "E"}
	i := 0
	for ; n >= 999.5 && i+1 < len(units); i++ {
		n /= 1000
	}
	switch {
	case i == 0:
		return strconv.FormatFloat(n, 'f', 0, 64)
	case n < 9.995:
		return strconv.FormatFloat(n, 'f', 2, 64) + units[i]
	case n < 99.95:
		return strconv.FormatFloat(n, 'f', 1, 64) + units[i]
	}
	return strconv.FormatFloat(n, 'f', 0, 64) + units[i]
}

// sparkline draws the last intervals of a history, the newest at the right.
func sparkline(m *meter, at, width int) string {
	const blocks = "▁▂▃▄▅▆▇█"
	width = min(width, topHistory)
	greatest := float32(1)
	for _, v := range m.history {
		greatest = max(greatest, v)
	}
	var b strings.Builder
	for i := range width {
		v := m.history[(at-width+i+2*topHistory)%topHistory]
		if v <= 0 {
			b.WriteByte(' ')
			continue
		}
		n := min(int(v/greatest*8), 7)
		b.WriteString(blocks[3*n : 3*n+3])
	}
	return b.String()
}

// fit cuts or pads a text to a width.
func fit(s string, width int, left bool) string {
	n := utf8.RuneCountInString(s)
	if n > width {
		cut := []rune(s)
		if width < 1 {
			return ""
		}
		return string(cut[:width-1]) + "…"
	}
	blank := strings.Repeat(" ", width-n)
	if left {
		return s + blank
	}
	return blank + s
}

// columns returns the columns that fit on a screen, with their widths.
func (v *topView) columns(width int) (list []topColumn) {
	room := width
	for _, c := range topColumns[v.by] {
		if width < c.from || c.until > 0 && width >= c.until {
			continue
		}
		list = append(list, c)
		room -= c.width + 1
	}
	for i := range list {
		if list[i].width == 0 {
			list[i].width = max(room+1, 8)
		}
	}
	return list
}

// topHeader is the number of lines above the rows, topFooter the number below.
const (
	topHeader = 4
	topFooter = 1
)

// topKeys are the keys, for the last line.
const topKeys = "p f h view  s sort  r reverse  / filter  d drop  k reset  ? help  q quit"

// lines returns the screen. Each line has at most width characters; there are height lines, or as many as the content
// needs if height is 0.
func (v *topView) lines(width, height int) []topLine {
	var out []topLine
	add := func(kind topKind, text string) {
		out = append(out, topLine{fit(strings.TrimRight(text, " "), width, true), kind})
	}
	title := fmt.Sprintf("divert top  in %sB/s  out %sB/s  %s packets/s", bytesText(v.total.in), bytesText(v.total.out), bytesText(v.total.packets))
	if v.lost > 0 {
		title += fmt.Sprintf("  %d lost", v.lost)
	}
	if v.paused {
		title += "  PAUSED"
	}
	add(lineTitle, title)
	add(lineText, fmt.Sprintf("total %sB in, %sB out  %s", bytesText(float64(v.total.BytesIn)), bytesText(float64(v.total.BytesOut)), sparkline(&v.total, v.at, max(0, width-40))))
	add(lineText, fmt.Sprintf("by %s, sorted by %s%s  layer %s  filter %s", topByNames[v.by], topSortNames[v.order], map[bool]string{true: " reversed"}[v.reverse], v.layer, printable(v.filter)))
	columns := v.columns(width)
	heading := ""
	for _, c := range columns {
		heading += fit(c.title, c.width, c.left) + " "
	}
	add(lineHeading, heading)
	room := len(v.rows)
	if height > 0 {
		room = max(0, height-topHeader-topFooter)
	}
	if v.help {
		for _, line := range topHelp {
			if len(out) < topHeader+room {
				add(lineText, line)
			}
		}
	} else {
		for i := v.first; i < len(v.rows) && i < v.first+room; i++ {
			text, kind := "", lineText
			for _, c := range columns {
				text += fit(c.text(v, &v.rows[i]), c.width, c.left) + " "
			}
			if i == v.selected {
				kind = lineSelected
			}
			add(kind, text)
		}
	}
	if height > 0 {
		for len(out) < height-topFooter {
			add(lineText, "")
		}
		switch {
		case v.typing:
			add(lineStatus, "filter: "+v.prompt)
		case v.status != "":
			add(lineStatus, v.status)
		default:
			add(lineText, topKeys)
		}
		out = out[:min(len(out), height)]
	}
	return out
}

// topHelp is the help of the screen.
var topHelp = []string{
	"  p f h    processes, flows, hosts; tab goes through them",
	"  s S      sort by the next, the one before: rate, in, out, total, packets, name",
	"  r        reverse the order",
	"  ↑ ↓      choose a row; page up and down, home, end",
	"  /        type another filter; enter sets it, escape leaves the old one",
	"  d        drop the packets of the chosen row, or stop that",
	"  k        reset its TCP connections: both ends get a RST with their next packet",
	"  c        count from 0",
	"  space    pause the screen; counting goes on",
	"  q        quit; dropped flows pass again",
	"",
	"Bytes are those of IP packets, without the link layer's headers. A packet of this host to",
	"itself counts as sent and as received, and among the flows once.",
}

// jsonTop is an interval of `top` as JSON.
type jsonTop struct {
	Time    time.Time `json:"time"`    // RFC 3339, UTC
	Seconds float64   `json:"seconds"` // length of the interval
	topCounts
	RateIn    float64          `json:"rate_in"` // bytes per second in the interval
	RateOut   float64          `json:"rate_out"`
	Lost      uint64           `json:"lost"` // packets that were not counted
	Processes []jsonTopProcess `json:"processes"`
	Flows     []jsonTopFlow    `json:"flows"`
	Hosts     []jsonTopHost    `json:"hosts"`
}

// jsonTopProcess is a process in jsonTop.
type jsonTopProcess struct {
	PID     uint32 `json:"pid"` // 0: none, or unknown
	Name    string `json:"name,omitempty"`
	Program string `json:"program,omitempty"` // path
	Flows   int    `json:"flows"`
	topCounts
	RateIn  float64 `json:"rate_in"`
	RateOut float64 `json:"rate_out"`
}

// jsonTopFlow is a flow in jsonTop.
type jsonTopFlow struct {
	PID          uint32     `json:"pid"`
	Protocol     uint8      `json:"protocol"`
	ProtocolName string     `json:"protocol_name,omitempty"`
	Local        netip.Addr `json:"local"`
	LocalPort    uint16     `json:"lport,omitempty"`
	Remote       netip.Addr `json:"remote"`
	RemotePort   uint16     `json:"rport,omitempty"`
	RemotePID    uint32     `json:"remote_pid,omitempty"` // of the other end, if it is on this host
	topCounts
	RateIn  float64 `json:"rate_in"`
	RateOut float64 `json:"rate_out"`
}

// jsonTopHost is a host in jsonTop.
type jsonTopHost struct {
	Addr  netip.Addr `json:"addr"`
	Flows int        `json:"flows"`
	topCounts
	RateIn  float64 `json:"rate_in"`
	RateOut float64 `json:"rate_out"`
}

// newJSONTop returns an interval that ended now, with the first rows of each kind.
func (c *counter) newJSONTop(now time.Time, seconds float64, lost uint64, order topSort, reverse bool, most int) *jsonTop {
	j := &jsonTop{Time: now.UTC(), Seconds: seconds, Lost: lost, Processes: []jsonTopProcess{}, Flows: []jsonTopFlow{}, Hosts: []jsonTopHost{}}
	for _, r := range c.rows(byProcess, order, reverse, most) {
		p := jsonTopProcess{PID: r.pid, Flows: r.flows, topCounts: r.topCounts, RateIn: r.in, RateOut: r.out}
		c.mu.Lock()
		if known := c.procs[r.pid]; known != nil && r.pid != 0 {
			p.Name, p.Program = known.name, known.path
		}
		c.mu.Unlock()
		j.Processes = append(j.Processes, p)
	}
	for _, r := range c.rows(byFlow, order, reverse, most) {
		if r.flow.excess {
			continue
		}
		k := r.flow.key
		j.Flows = append(j.Flows, jsonTopFlow{
			PID: r.pid, Protocol: k.protocol, ProtocolName: protocolNames[k.protocol], Local: k.local.Addr(), LocalPort: k.local.Port(),
			Remote: k.remote.Addr(), RemotePort: k.remote.Port(), RemotePID: r.flow.other.pid, topCounts: r.topCounts, RateIn: r.in, RateOut: r.out,
		})
	}
	for _, r := range c.rows(byHost, order, reverse, most) {
		h := jsonTopHost{Flows: r.flows, topCounts: r.topCounts, RateIn: r.in, RateOut: r.out}
		h.Addr, _ = netip.ParseAddr(r.name)
		j.Hosts = append(j.Hosts, h)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	j.topCounts, j.RateIn, j.RateOut = c.total.topCounts, c.total.in, c.total.out
	return j
}

// topMaxRows limits how many rows a user can scroll through.
const topMaxRows = 1000

// view fills a view from the counter.
func (c *counter) view(v *topView) {
	v.rows = c.rows(v.by, v.order, v.reverse, topMaxRows)
	c.mu.Lock()
	defer c.mu.Unlock()
	v.total, v.at = c.total, c.at
}
