// Package flowtable keeps the flows that a handle of the layer FLOW has been told of and that have not ended.
//
// The kernel only finds flows. What it remembers of them may be lost there, and then it tells of a flow a second time; and of the end
// of flows without a connection it knows nothing. The table says which flows are new and which are over.
package flowtable
