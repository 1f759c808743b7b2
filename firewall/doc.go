// Package firewall decides which connections of this host are allowed, by the rules in a file: by process, direction,
// address, port, name and time.
//
//	rules, err := firewall.Load("rules.yaml")
//	if err != nil {
//		log.Fatal(err)
//	}
//	f, err := firewall.Open(rules, firewall.Config{Log: func(e firewall.Event) { log.Print(e) }})
//	if err != nil {
//		log.Fatal(err)
//	}
//	defer f.Close()
//	err = f.Run(ctx)
//
// The firewall decides a connection once, by its first packet, which it holds until then; the kernel does the rest
// (divert.Handle.AcceptFlow, DropFlow). Where the kernel can, connections that rules refuse by addresses and ports alone
// already fail at connect (divert.LayerSocket). Rules.Decide is the decision itself, a function of the connection.
//
// docs/firewall.md describes the file. The package uses only the public interface of package divert.
package firewall
