// Package firewall decides which connections of this host may be, by rules that a file has: by process, direction, address,
// port, name and time.
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
// A connection is decided once, by its first packet, which is held until then, and the kernel does the rest
// (divert.Handle.AcceptFlow, DropFlow). Connections that rules refuse by addresses and ports alone are refused at connect already, where
// the kernel can (divert.LayerSocket). Rules.Decide is the decision itself, a function of the connection.
//
// The file is described in docs/firewall.md. The package uses nothing but the public interface of package divert.
package firewall
