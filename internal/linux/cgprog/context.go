//go:build linux

package cgprog

// Offsets of the socket in the contexts of the programs (linux/bpf.h); InContext is for contexts that are a socket themselves.
const (
	InContext = -1
	AddrSock  = 64  // struct bpf_sock_addr
	OpsSock   = 184 // struct bpf_sock_ops
	SkbSock   = 168 // struct __sk_buff
)

// Offsets in struct bpf_sock.
const (
	SockFamily   = 4
	SockType     = 8
	SockProtocol = 12
	SockPriority = 20
	SockSrcIP4   = 24
	SockSrcIP6   = 28
	SockSrcPort  = 44 // host byte order
	SockDstPort  = 48 // network byte order, 2 bytes
	SockDstIP4   = 52
	SockDstIP6   = 56
	SockState    = 72
)

// Offsets in struct bpf_sock_addr.
const (
	AddrIP4      = 4
	AddrIP6      = 8
	AddrPort     = 24 // network byte order
	AddrProtocol = 36
)

// Offsets in struct bpf_sock_ops.
const (
	OpsOp         = 0
	OpsNewState   = 8 // args[1] of OpState
	OpsFamily     = 20
	OpsRemoteIP4  = 24
	OpsLocalIP4   = 28
	OpsRemoteIP6  = 32
	OpsLocalIP6   = 48
	OpsRemotePort = 64 // network byte order, the lower half zero
	OpsLocalPort  = 68 // host byte order
	OpsCallbacks  = 84
)

// Operations of sock_ops programs (BPF_SOCK_OPS_*).
const (
	OpTCPConnect         = 3
	OpActiveEstablished  = 4
	OpPassiveEstablished = 5
	OpState              = 10
	OpTCPListen          = 11
)

// States of TCP.
const (
	TCPSynSent = 2
	TCPClose   = 7
	TCPListen  = 10
)

// Protocol numbers (IANA); MPTCP is IPPROTO_MPTCP of linux/in.h.
const (
	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoMPTCP  = 262
)

// Address families (linux/socket.h).
const (
	INET  = 2
	INET6 = 10
)
