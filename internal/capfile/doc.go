// Package capfile reads capture files: the IP packets of pcap and pcapng files of every version, byte order and compression
// that libpcap reads, with the headers of the link layer taken off.
package capfile
