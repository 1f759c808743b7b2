// Package packet knows IP packets: it parses them, gives typed views of their headers, computes
// checksums, TTLs and hashes, and reads and writes addresses as text, all as WinDivert 2.2 does.
// It also defines what a captured packet carries besides its bytes (Address) and the element of
// receive and send batches (Packet). Its functions work on the caller's memory, allocate nothing
// unless they return a string, and run on every operating system.
package packet
