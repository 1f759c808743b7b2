// Package socketfeed raises the events of the layers SOCKET and FLOW from the records that programs in the kernel send.
package socketfeed
