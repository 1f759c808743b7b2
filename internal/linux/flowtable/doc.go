// Package flowtable keeps the flows that a handle at the layer FLOW knows and that have not ended.
//
// The kernel only finds flows. It may forget one and then report it a second time, and it does not see the end of flows
// without a connection. The table says which flows are new and which are over.
package flowtable
