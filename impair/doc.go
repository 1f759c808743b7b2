// Package impair makes a network worse on purpose: it delays, loses, duplicates, reorders and corrupts the packets that
// match a filter, limits their rate and resets their connections, by rules that may change with time.
//
//	i, err := impair.Open(impair.Config{
//		Seed:  1,
//		Rules: []impair.Rule{{Filter: "udp.DstPort == 53", Lag: 100 * time.Millisecond, Loss: 0.01}},
//	})
//	if err != nil {
//		log.Fatal(err)
//	}
//	err = i.Run(ctx) // until ctx ends; then the packets that are held go on at once
//
// A run can be repeated: the seed, the rule, the flow and a packet's number in the flow decide whether the packet is
// lost, duplicated, reordered, corrupted or reset, and how much jitter it gets, whatever other flows do meanwhile. A flow
// is one direction between two addresses and ports, so a flow with other ports has other packets impaired.
//
// The package uses only the public interface of package divert, so it runs wherever divert runs, and on the fake network
// of package diverttest.
package impair
