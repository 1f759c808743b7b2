// Package web blocks web sites by the names that clients ask for: the Host of HTTP requests, the server name of TLS
// (SNI), and that of QUIC versions 1 and 2. A Filter holds the packets that begin a connection until the name is known,
// then lets the connection go on or ends it; the server never sees a byte of a blocked request. The list of names (Hosts)
// works without a network.
//
//	hosts := web.NewHosts()
//	if err := hosts.Follow(ctx, "blocked.txt", nil); err != nil {
//		return err
//	}
//	f, err := web.Open(web.Config{Hosts: hosts})
//	if err != nil {
//		return err
//	}
//	defer f.Close()
//	return f.Run(ctx)
//
// docs/web.md lists the connections that can be judged, and those that cannot.
package web
