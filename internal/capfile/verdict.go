package capfile

import (
	"slices"
	"strings"
)

// Verdict is the fate of a packet, as recorded in the command's files.
type Verdict uint8

// The verdicts.
const (
	NoVerdict Verdict = iota // the file has none
	Accepted                 // it went on unchanged
	Rewritten                // it went on with other bytes
	Dropped
	Rejected // it ended, and its sender got an error
	Sent     // it is a packet that divert sent
)

var verdicts = [...]string{"", "accepted", "rewritten", "dropped", "rejected", "sent"}

// String returns the verdict in a word, "" for NoVerdict.
func (v Verdict) String() string { return verdicts[v] }

// VerdictComment begins a packet's comment with its verdict. The format's own option for verdicts has only those of
// hardware, TC and XDP (draft-ietf-opsawg-pcapng 4.3, epb_verdict).
const VerdictComment = "verdict: "

// verdictOf returns the verdict in a comment, NoVerdict if it has none.
func verdictOf(comment string) Verdict {
	name, ok := strings.CutPrefix(comment, VerdictComment)
	if !ok {
		return NoVerdict
	}
	return Verdict(max(0, slices.Index(verdicts[:], name)))
}
