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
// A run can be repeated: which packets of a flow are lost, duplicated, reordered, corrupted or reset, and what jitter each
// gets, is a function of the seed, the rule, the flow and the packet's number in it, whatever other flows do meanwhile. A
// flow is one direction between two addresses and ports, so flows with other ports have other packets impaired.
//
// It uses nothing but the public interface of package divert, so it runs wherever that runs, on the fake network of package
// diverttest too.
package impair
