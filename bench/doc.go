// Command bench measures what diverting costs, side by side with what it is to be compared with: nothing
// at all, a plain queue loop, rules of nftables, a packet socket's ring.
//
// It makes two hosts of its own (package internal/lab) with one link between them and touches nothing
// else. Each contender is a process on host A; the loads run between A and B, the same for all. In each
// round every contender meets every load once, in an order that turns from round to round, and
// the report has the median over the rounds of the ratio to "none" in the same round.
//
//	go run ./bench -json bench.json -svg bench.svg
//
// docs/performance.md says what the columns mean.
package main
