// Package packet works on IP packets. It parses them, gives typed views of their headers, changes their addresses, ports
// and payloads, builds new ones, and computes checksums, TTLs and hashes as WinDivert 2.2 does. It also defines the
// address of a captured packet (Address) and the element of receive and send batches (Packet), and it keeps TCP
// connections consistent while a program changes the number of their bytes (Stream). Its functions work on the caller's
// memory, allocate nothing for each packet, and run on every operating system.
package packet
