package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/process"
)

// Action is the fate of a connection.
type Action uint8

// The actions.
const (
	Allow  Action = iota
	Deny          // dropped silently
	Reject        // refused, and the sender is told: connect fails, TCP is reset, UDP gets ICMP port unreachable
	Ask           // held until an answer
	Log           // logged; the rules below decide. A Decision never has it
	Look          // not decided yet: the name of the TLS or QUIC server decides. Rules never have it
)

var actionWords = [...]string{Allow: "allow", Deny: "deny", Reject: "reject", Ask: "ask", Log: "log", Look: "look"}

// String returns the action in a word, in the notation of rules.
func (a Action) String() string {
	if int(a) < len(actionWords) {
		return actionWords[a]
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// MarshalText returns the text of String.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads the text of MarshalText.
func (a *Action) UnmarshalText(text []byte) (err error) {
	*a, err = parseAction(string(text), Allow, Deny, Reject, Ask, Log, Look)
	return err
}

// parseAction reads an action, which must be one of those allowed.
func parseAction(text string, allowed ...Action) (Action, error) {
	words := make([]string, len(allowed))
	for i, a := range allowed {
		if words[i] = a.String(); words[i] == text {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%q cannot be used here; use one of %s", text, strings.Join(words, ", "))
}

// Protocol numbers (IANA).
const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
)

// Program is the process of a connection, and its parent. The zero Program is unknown: the kernel itself, or impossible
// to find.
type Program struct {
	Process process.Process
	Parent  process.Process // its parent; the zero Process if that has ended
}

// Known reports whether the process is known.
func (p *Program) Known() bool { return p.Process.ID != 0 }

// Conn describes a connection: of TCP, an exchange of UDP or ICMP echo, or a packet of another protocol.
type Conn struct {
	Outbound      bool // this host began it
	Protocol      uint8
	Local, Remote netip.AddrPort // IPv4 addresses are not mapped; ports are 0 for protocols without ports
	Program       Program
	Names         []string // names of Remote's address, by DNS; lower case, without final dot
	ServerName    string   // the name of the server that a TLS or QUIC client asks for; lower case, without final dot
	Hello         bool     // ServerName is known, or will not come; false only while it may come, for TCP and UDP
	Time          time.Time
}

// Decision is the result of the rules for a connection.
type Decision struct {
	Action Action
	Rule   int   // the number of the rule, from 1; 0 is the default
	Log    bool  // it is to be logged
	Logged []int // numbers of rules with the action Log that match
}

// Rules are the rules of a file. They do not change, and may be used by several goroutines.
type Rules struct {
	rules       []rule
	action      Action // by default
	closed      bool   // after the process is killed, nothing undecided passes
	loopback    bool   // connections of the host with itself are decided too
	serverNames bool   // names in TLS and QUIC are read
	log         logLevel
	ask         askSettings
	resolvers   []netip.Addr // nil: those of the system
	files       []dependency // the other files read
}

// askSettings settle questions that nobody answers.
type askSettings struct {
	timeout time.Duration
	action  Action
}

// logLevel selects the decisions to log.
type logLevel uint8

const (
	logDenied logLevel = iota // all but allowed ones, and answered questions
	logAll
	logRules // as each rule says
)

// rule is one rule. A condition that is nil or 0 was not given and always holds.
type rule struct {
	name   string
	action Action
	log    bool

	direction direction
	protocols []uint8
	addresses []*filter.Set // of the remote side: in one of them
	locals    []*filter.Set
	ports     []portRange // of the side that did not begin the connection
	remote    []portRange
	local     []portRange
	hosts     []pattern // names by DNS, or in TLS or QUIC
	servers   []pattern // names in TLS or QUIC
	programs  []executable
	parents   []executable
	names     []string // of processes
	users     []account
	times     []window
	days      uint8 // a bit for each time.Weekday
}

type direction uint8

const (
	bothWays direction = iota
	outward
	inward
)

// portRange is the ports from first to last.
type portRange struct{ first, last uint16 }

// executable is a program's file: by inode where the system has inodes, else by its path.
type executable struct {
	path string
	file process.File
}

// account is a user.
type account struct {
	name string
	uid  uint32
	byID bool // uid counts
}

// window is a part of each day, in minutes since midnight; it goes over midnight if from > to.
type window struct{ from, to int }

// pattern is a host name: itself, the names below it, or both.
type pattern struct {
	name        string // without the leading dot of names below
	self, below bool
}

// matches reports whether the pattern covers a name, in lower case and without a final dot.
func (p *pattern) matches(name string) bool {
	if len(name) == len(p.name) {
		return p.self && name == p.name
	}
	return p.below && strings.HasSuffix(name, p.name) && name[len(name)-len(p.name)-1] == '.'
}

// Len returns the number of rules.
func (r *Rules) Len() int { return len(r.rules) }

// Name returns the name of a rule by its number, from 1; "default" for 0, and "rule 7" for one without a name.
func (r *Rules) Name(number int) string {
	switch {
	case number < 1 || number > len(r.rules):
		return "default"
	case r.rules[number-1].name != "":
		return r.rules[number-1].name
	}
	return fmt.Sprintf("rule %d", number)
}

// Default returns the action for connections that no rule decides.
func (r *Rules) Default() Action { return r.action }

// FailClosed reports whether nothing undecided may pass after the process was killed.
func (r *Rules) FailClosed() bool { return r.closed }

// Loopback reports whether connections of the host with itself are decided too.
func (r *Rules) Loopback() bool { return r.loopback }

// truth is whether a condition holds.
type truth uint8

const (
	no    truth = iota
	maybe       // the name of the TLS or QUIC server, which may still come, decides
	yes
)

// Decide decides a connection: the first rule all of whose conditions hold, leaving aside rules with the action Log. It
// is a function of its arguments alone, and allocates nothing unless rules with the action Log match.
//
// The action is Look if the name of a TLS or QUIC server may still become known and would make a difference.
func (r *Rules) Decide(c *Conn) Decision {
	var d Decision
	var open [8]bool // actions of rules that may match
	var undecided bool
	for i := range r.rules {
		rule := &r.rules[i]
		switch rule.match(c, r.serverNames) {
		case maybe:
			undecided = true
			open[rule.action] = true
			if rule.log {
				open[Log] = true
			}
			continue
		case no:
			continue
		}
		if rule.action == Log {
			d.Logged = append(d.Logged, i+1)
			continue
		}
		d.Action, d.Rule, d.Log = rule.action, i+1, rule.log
		break
	}
	if d.Rule == 0 {
		d.Action = r.action
	}
	if undecided {
		open[d.Action] = false
		if open != [8]bool{} {
			return Decision{Action: Look}
		}
	}
	d.Log = d.Log || r.log == logAll || r.log == logDenied && d.Action != Allow
	return d
}

// match reports whether all conditions of a rule hold.
func (r *rule) match(c *Conn, serverNames bool) truth {
	if r.direction == outward && !c.Outbound || r.direction == inward && c.Outbound ||
		r.protocols != nil && !slices.Contains(r.protocols, c.Protocol) ||
		!r.matchPorts(c) ||
		!inSets(r.addresses, c.Remote.Addr()) ||
		!inSets(r.locals, c.Local.Addr()) ||
		!r.matchProgram(&c.Program) || !r.matchTime(c.Time) {
		return no
	}
	if r.hosts == nil && r.servers == nil {
		return yes
	}
	known := c.Hello || !serverNames || c.Protocol != protocolTCP && c.Protocol != protocolUDP
	return min(matchHosts(r.hosts, c, known, true), matchHosts(r.servers, c, known, false))
}

// inSets reports whether an address is in one of the sets; it is true if there are no sets.
func inSets(sets []*filter.Set, a netip.Addr) bool {
	return sets == nil || slices.ContainsFunc(sets, func(s *filter.Set) bool { return s.Contains(a) })
}

func (r *rule) matchPorts(c *Conn) bool {
	called := c.Local.Port()
	if c.Outbound {
		called = c.Remote.Port()
	}
	ported := c.Protocol == protocolTCP || c.Protocol == protocolUDP
	return inRanges(r.ports, called, ported) && inRanges(r.remote, c.Remote.Port(), ported) && inRanges(r.local, c.Local.Port(), ported)
}

// inRanges reports whether a port is in one of the ranges; it is true if there are no ranges.
func inRanges(ranges []portRange, port uint16, ported bool) bool {
	if ranges == nil {
		return true
	}
	return ported && slices.ContainsFunc(ranges, func(p portRange) bool { return p.first <= port && port <= p.last })
}

// matchHosts reports whether the names of a connection match one of the patterns.
func matchHosts(patterns []pattern, c *Conn, known, dns bool) truth {
	if patterns == nil {
		return yes
	}
	for i := range patterns {
		p := &patterns[i]
		if c.ServerName != "" && p.matches(c.ServerName) {
			return yes
		}
		if dns && slices.ContainsFunc(c.Names, p.matches) {
			return yes
		}
	}
	if known {
		return no
	}
	return maybe
}

func (r *rule) matchProgram(p *Program) bool {
	if r.programs == nil && r.parents == nil && r.names == nil && r.users == nil {
		return true
	}
	return p.Known() &&
		(r.programs == nil || isAny(r.programs, &p.Process)) &&
		(r.parents == nil || isAny(r.parents, &p.Parent)) &&
		(r.names == nil || slices.Contains(r.names, p.Process.Name)) &&
		(r.users == nil || slices.ContainsFunc(r.users, func(a account) bool {
			return a.byID && a.uid == p.Process.UID || !a.byID && a.name == p.Process.User
		}))
}

// isAny reports whether a process runs one of the files.
func isAny(files []executable, p *process.Process) bool {
	return slices.ContainsFunc(files, func(e executable) bool {
		if e.file != (process.File{}) || p.File != (process.File{}) {
			return e.file == p.File
		}
		return e.path == p.Executable && e.path != ""
	})
}

// matchTime reports whether the rule is in force at a time, by the clock of its time zone. A window over midnight belongs
// to the day on which it begins.
func (r *rule) matchTime(t time.Time) bool {
	if r.times == nil {
		return r.days == 0 || r.days>>t.Weekday()&1 != 0
	}
	minute := t.Hour()*60 + t.Minute()
	today := r.days == 0 || r.days>>t.Weekday()&1 != 0
	yesterday := r.days == 0 || r.days>>((t.Weekday()+6)%7)&1 != 0
	return slices.ContainsFunc(r.times, func(w window) bool {
		switch {
		case w.from <= w.to:
			return today && w.from <= minute && minute < w.to
		case minute >= w.from:
			return today
		}
		return yesterday && minute < w.to
	})
}

// timely returns the set of rules with a time that are in force, as a text that differs whenever the set does.
func (r *Rules) timely(t time.Time) string {
	var b strings.Builder
	for i := range r.rules {
		if rule := &r.rules[i]; rule.times != nil || rule.days != 0 {
			fmt.Fprintf(&b, "%d:%t ", i, rule.matchTime(t))
		}
	}
	return b.String()
}

// needsProcesses reports whether a rule needs processes.
func (r *Rules) needsProcesses() bool {
	return slices.ContainsFunc(r.rules, func(r rule) bool {
		return r.programs != nil || r.parents != nil || r.names != nil || r.users != nil
	})
}
