//go:build !linux

package impair

import "time"

// napTime is the longest nap: timers are precise here.
const (
	napTime  = 0
	napSlice = 0
)

type napper struct{}

func newNapper() *napper { return &napper{} }

func (*napper) nap(time.Duration) {}

func (*napper) Close() {}
