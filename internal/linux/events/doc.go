// Package events has the handle of the layers FLOW, SOCKET and REFLECT: events wait in its backlog until they are received. They
// come from a Feed: socketfeed and registry are the two.
package events
