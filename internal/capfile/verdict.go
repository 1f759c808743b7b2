package capfile

import (
	"slices"
	"strings"
)

// Verdict is what became of a packet, as the files of the command tell it.
type Verdict uint8

// The verdicts.
const (
	NoVerdict Verdict = iota // the file tells none
	Accepted                 // it went on as it was
	Rewritten                // it went on with other bytes
	Dropped
	Rejected // it is gone, and its sender was told
	Sent     // it is a packet that divert sent
)

var verdicts = [...]string{"", "accepted", "rewritten", "dropped", "rejected", "sent"}

// String returns the verdict in a word, "" for NoVerdict.
func (v Verdict) String() string { return verdicts[v] }

// VerdictComment begins the comment of a packet that tells its verdict. The option that the format has for verdicts knows only
// those of hardware, TC and XDP (draft-ietf-opsawg-pcapng 4.3, epb_verdict).
const VerdictComment = "verdict: "

// verdictOf returns the verdict that a comment tells, NoVerdict if it is about something else.
func verdictOf(comment string) Verdict {
	name, ok := strings.CutPrefix(comment, VerdictComment)
	if !ok {
		return NoVerdict
	}
	return Verdict(max(0, slices.Index(verdicts[:], name)))
}
