// Command bench measures the cost of diverting, side by side with the alternatives: no handle at all, a plain queue
// loop, nftables rules, a packet socket's ring.
//
// It makes two hosts (package internal/lab) with one link between them and touches nothing else. Each contender is a
// process on host A; the same loads run between A and B for all. In each round every contender runs every load once, in
// an order that rotates from round to round, and the report has the median over the rounds of the ratio to "none" in
// the same round.
//
//	go run ./bench -json bench.json -svg bench.svg
//
// docs/performance.md explains the columns.
package main
