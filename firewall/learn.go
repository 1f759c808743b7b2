package firewall

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
)

// Learner notes the connections that no rule decides, and writes rules that allow them. The zero Learner has seen
// nothing; its methods may be called from several goroutines.
type Learner struct {
	mu      sync.Mutex
	seen    map[lesson]int // number of connections of each
	dropped int            // connections without room in seen
}

// maxLessons is the most rules to learn.
const maxLessons = 10000

// lesson has the conditions of a rule.
type lesson struct {
	program  string // empty if unknown or not text
	outbound bool
	protocol uint8
	port     uint16
	host     string // a name, or an address; empty for connections that come in
	isName   bool
}

// learnedRule is a rule in the file.
type learnedRule struct {
	Action    string `yaml:"action"`
	Direction string `yaml:"direction"`
	Protocol  string `yaml:"protocol"`
	Port      uint16 `yaml:"port,omitempty"`
	Host      string `yaml:"host,omitempty"`
	Address   string `yaml:"address,omitempty"`
	Program   string `yaml:"program,omitempty"`
}

// add takes in a connection that no rule decides.
func (l *Learner) add(c *Conn) {
	s := lesson{outbound: c.Outbound, protocol: c.Protocol}
	if path := c.Program.Process.Executable; filepath.IsAbs(path) && utf8.ValidString(path) {
		s.program = path
	}
	if c.Protocol == protocolTCP || c.Protocol == protocolUDP {
		s.port = c.Local.Port()
		if c.Outbound {
			s.port = c.Remote.Port()
		}
	}
	if c.Outbound {
		s.host = c.Remote.Addr().String()
		for _, name := range append(slices.Clone(c.Names), c.ServerName) {
			if _, err := parsePattern(name); err == nil {
				s.host, s.isName = name, true
				break // the name last asked for comes first
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[lesson]int{}
	}
	if _, known := l.seen[s]; !known && len(l.seen) >= maxLessons {
		l.dropped++
		return
	}
	l.seen[s]++
}

// Len returns the number of rules to write.
func (l *Learner) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.seen)
}

// WriteTo writes a file of rules: each allows connections that were seen, and the default is deny.
func (l *Learner) WriteTo(w io.Writer) (int64, error) {
	l.mu.Lock()
	lessons := slices.SortedFunc(maps.Keys(l.seen), func(a, b lesson) int {
		return cmp.Or(cmp.Compare(a.program, b.program), cmp.Compare(b2i(b.outbound), b2i(a.outbound)),
			cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.port, b.port), cmp.Compare(a.host, b.host))
	})
	seen, dropped := maps.Clone(l.seen), l.dropped
	l.mu.Unlock()
	var b bytes.Buffer
	b.WriteString("# Connections that no rule was about, as divert firewall run --learn has seen them. Read them before you use them.\ndefault: deny\n")
	if dropped > 0 {
		fmt.Fprintf(&b, "# %d more had no room.\n", dropped)
	}
	if len(lessons) > 0 {
		b.WriteString("rules:\n")
	}
	for _, s := range lessons {
		r := learnedRule{Action: Allow.String(), Direction: "in", Protocol: ProtocolName(s.protocol), Port: s.port, Program: s.program}
		if s.outbound {
			r.Direction = "out"
		}
		if s.isName {
			r.Host = s.host
		} else {
			r.Address = s.host
		}
		text, err := yaml.MarshalWithOptions([]learnedRule{r}, yaml.IndentSequence(true))
		if err != nil {
			return 0, err
		}
		fmt.Fprintf(&b, "  # seen %d times\n%s", seen[s], text)
	}
	n, err := w.Write(b.Bytes())
	return int64(n), err
}

// b2i orders false before true.
func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// ProtocolName returns a protocol in the notation of rules.
func ProtocolName(p uint8) string {
	for name, number := range protocolNames {
		if number == p {
			return name
		}
	}
	return strconv.Itoa(int(p))
}

// Save writes the file at a path at once: readers find the old rules or the new ones. A new file is for its user alone.
func (l *Learner) Save(path string) error {
	var b bytes.Buffer
	if _, err := l.WriteTo(&b); err != nil {
		return err
	}
	return replaceFile(path, b.Bytes())
}
