package flow

import "sync"

// Table keeps the flows of a handle in user space: the verdicts, and the counts of flows without one, for filters. It may
// be used by several goroutines at once. Times are in nanoseconds of one clock.
type Table struct {
	idle Idle

	mu      sync.Mutex
	decided list
	counted list
	totals  Totals
}

// NewTable returns a table for size flows with a verdict, and as many others.
func NewTable(size int, idle Idle) *Table {
	return &Table{idle: idle, decided: newList(size), counted: newList(size)}
}

// Decide puts a verdict for a flow in force. If the flow has this verdict already, its counters continue.
func (t *Table) Decide(k Key, v Verdict, now int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.decided.nodes[k]; n != nil && n.record.Verdict == v && n.record.Live(now, t.decided.generation) {
		t.decided.touch(n)
		return
	}
	t.decided.put(k).record = Record{LastSeen: now, Idle: t.idle.Of(k.Protocol), Generation: t.decided.generation, Verdict: v}
}

// Pass returns the verdict for a packet, and counts the packet if there is one. A packet that begins a flow ends the
// verdict of the previous one.
func (t *Table) Pass(p *Packet, now int64) Verdict {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.decided.live(p, now)
	if n == nil {
		return Undecided
	}
	t.decided.touch(n)
	n.record.Count(p, now)
	t.totals.add(n.record.Verdict, p.Bytes)
	return n.record.Verdict
}

// Counts are a flow's counts for filters: packets and bytes so far, this packet included.
type Counts struct {
	Packets, Bytes       uint64 // of both directions
	WayPackets, WayBytes uint64 // of the packets in this one's direction
}

// Count counts a packet of a flow for a filter.
func (t *Table) Count(p *Packet, now int64) Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.counted.live(p, now)
	if n == nil {
		n = t.counted.put(p.Key)
		n.record = Record{Idle: t.idle.Of(p.Key.Protocol), Generation: t.counted.generation}
	} else {
		t.counted.touch(n)
	}
	r := &n.record
	r.Count(p, now)
	way := p.Way()
	return Counts{
		Packets: r.Packets[0] + r.Packets[1], Bytes: r.Bytes[0] + r.Bytes[1],
		WayPackets: r.Packets[way], WayBytes: r.Bytes[way],
	}
}

// Begin ends the verdict of the previous flow, if the packet begins one. Call it for packets that do not match, too.
func (t *Table) Begin(p *Packet) {
	if p.Begins() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.decided.remove(p.Key)
	}
}

// Dropped reports whether a packet's flow is dropped, without counting it.
func (t *Table) Dropped(p *Packet, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.decided.nodes[p.Key]
	return n != nil && n.record.Verdict == Drop && n.record.Live(now, t.decided.generation)
}

// Forget removes the record of a flow, and reports whether it had a verdict.
func (t *Table) Forget(k Key, now int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counted.remove(k)
	n := t.decided.nodes[k]
	had := n != nil && n.record.Live(now, t.decided.generation)
	t.decided.remove(k)
	return had
}

// Revoke ends all verdicts.
func (t *Table) Revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.decided.generation++
}

// ForgetAll removes the records of all flows.
func (t *Table) ForgetAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.decided.generation++
	t.counted.generation++
}

// Get returns the record of a flow with a verdict.
func (t *Table) Get(k Key, now int64) (Record, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.decided.nodes[k]
	if n == nil || !n.record.Live(now, t.decided.generation) {
		return Record{}, false
	}
	return n.record, true
}

// Totals returns the counters.
func (t *Table) Totals() Totals {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.totals
}

// list is a list of flows of limited length; the flow not seen for the longest time makes way.
type list struct {
	size       int
	generation uint32
	nodes      map[Key]*node
	head       node // of a ring: head.next is the flow seen last
}

// node is a flow.
type node struct {
	key        Key
	record     Record
	prev, next *node
}

func newList(size int) list { return list{size: size, nodes: map[Key]*node{}} }

// live returns the flow of a packet if its record is valid and the packet does not begin another flow.
func (l *list) live(p *Packet, now int64) *node {
	n := l.nodes[p.Key]
	if n == nil || p.Begins() || !n.record.Live(now, l.generation) {
		if n != nil {
			l.remove(p.Key)
		}
		return nil
	}
	return n
}

// put returns the node of a flow, a new one if there is none.
func (l *list) put(k Key) *node {
	if n := l.nodes[k]; n != nil {
		l.touch(n)
		return n
	}
	if l.head.next == nil {
		l.head.next, l.head.prev = &l.head, &l.head
	}
	var n *node
	if len(l.nodes) >= l.size {
		n = l.head.prev // reuse its memory
		l.unlink(n)
		delete(l.nodes, n.key)
	} else {
		n = new(node)
	}
	n.key = k
	l.nodes[k] = n
	l.link(n)
	return n
}

// touch makes a flow the one seen last.
func (l *list) touch(n *node) {
	l.unlink(n)
	l.link(n)
}

func (l *list) unlink(n *node) { n.prev.next, n.next.prev = n.next, n.prev }

func (l *list) link(n *node) {
	n.prev, n.next = &l.head, l.head.next
	n.prev.next, n.next.prev = n, n
}

// remove removes a flow.
func (l *list) remove(k Key) {
	if n := l.nodes[k]; n != nil {
		l.unlink(n)
		delete(l.nodes, k)
	}
}
