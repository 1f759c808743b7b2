package impair

// RuleStats counts the packets of a rule. Each packet and each duplicate was lost, reset or dropped, could not be sent,
// is still held, or went on.
type RuleStats struct {
	Phase  int    `json:"phase"` // numbered from 0
	Rule   int    `json:"rule"`  // in its phase, numbered from 0
	Filter string `json:"filter"`

	Packets uint64 `json:"packets"` // packets that met the rule
	Bytes   uint64 `json:"bytes"`   // their bytes, as IP packets

	Lost        uint64 `json:"lost"`
	Reset       uint64 `json:"reset"` // replaced by resets
	Corrupted   uint64 `json:"corrupted"`
	Duplicated  uint64 `json:"duplicated"`
	Delayed     uint64 `json:"delayed"`      // held for any time
	Reordered   uint64 `json:"reordered"`    // held until others had passed
	QueueFull   uint64 `json:"queue_full"`   // dropped: the queue of the rate had no room
	HoldingFull uint64 `json:"holding_full"` // dropped: too many packets or bytes were held, see Config.MaxPackets
	Ended       uint64 `json:"ended"`        // dropped at the end, see Config.DropHeld
}

// Stats counts the packets of a run.
type Stats struct {
	Rules []RuleStats // of all phases, in their order

	Unimpaired     uint64 // packets that met no rule of their phase
	Failed         uint64 // packets that the system refused to send on
	Held           int    // packets waiting now
	HeldBytes      int    // their bytes
	FlowsForgotten uint64 // forgotten flows, whose packets count from 0 again, see Config.MaxFlows
}

// Stats returns the counters, all of one instant.
func (i *Impairer) Stats() Stats {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := Stats{
		Unimpaired: i.unimpaired, Failed: i.failed.Load(), Held: len(i.heap), HeldBytes: i.heldBytes, FlowsForgotten: i.flows.forgotten,
		Rules: make([]RuleStats, len(i.plan.rules)),
	}
	for n, r := range i.plan.rules {
		s.Rules[n] = r.stats
	}
	return s
}
