// Package capfile reads capture files: the IP packets of pcap and pcapng files of every version, byte order and compression
// that libpcap reads, without the headers of the link layer.
package capfile
