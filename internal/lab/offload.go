//go:build linux

package lab

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offload is a set of tasks that an interface takes over from the network stack.
type Offload uint8

// The offloads. Without OffloadTxChecksum a veth link carries packets with complete checksums.
const (
	OffloadTxChecksum Offload = 1 << iota // checksums left unfinished on sending; TSO needs it
	OffloadRxChecksum                     // checksums not verified on receiving
	OffloadTSO                            // large TCP segments sent whole
	OffloadGSO                            // large packets kept whole until the last moment
	OffloadGRO                            // small packets merged on receiving

	OffloadAll = OffloadTxChecksum | OffloadRxChecksum | OffloadTSO | OffloadGSO | OffloadGRO
)

// offloads are the ethtool commands that get and set each (include/uapi/linux/ethtool.h).
var offloads = []struct {
	bit      Offload
	name     string
	get, set uint32
}{
	{OffloadTxChecksum, "tx-checksum", unix.ETHTOOL_GTXCSUM, unix.ETHTOOL_STXCSUM},
	{OffloadRxChecksum, "rx-checksum", unix.ETHTOOL_GRXCSUM, unix.ETHTOOL_SRXCSUM},
	{OffloadTSO, "tso", unix.ETHTOOL_GTSO, unix.ETHTOOL_STSO},
	{OffloadGSO, "gso", unix.ETHTOOL_GGSO, unix.ETHTOOL_SGSO},
	{OffloadGRO, "gro", unix.ETHTOOL_GGRO, unix.ETHTOOL_SGRO},
}

// String returns the names, separated by "+".
func (o Offload) String() string {
	var names []string
	for _, f := range offloads {
		if o&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, "+")
}

// SetOffload turns each offload of o on or off. It fails if the interface cannot switch one.
func (l *Link) SetOffload(o Offload, on bool) error {
	var value uint32
	if on {
		value = 1
	}
	tracef("%s:%s: offload %v on=%t", l.host, l.name, o, on)
	return l.host.Do(func() error {
		for _, f := range offloads {
			if o&f.bit == 0 {
				continue
			}
			if _, err := ethtool(l.name, f.set, value); err != nil {
				return fmt.Errorf("lab: %s:%s: set %s: %w", l.host, l.name, f.name, err)
			}
		}
		return nil
	})
}

// Offloads returns the offloads that are on.
func (l *Link) Offloads() (on Offload, err error) {
	err = l.host.Do(func() error {
		for _, f := range offloads {
			value, err := ethtool(l.name, f.get, 0)
			if err != nil {
				return fmt.Errorf("lab: %s:%s: get %s: %w", l.host, l.name, f.name, err)
			}
			if value != 0 {
				on |= f.bit
			}
		}
		return nil
	})
	return on, err
}

// ethtoolValue is struct ethtool_value, and ethtoolRequest struct ifreq with a pointer to it.
type (
	ethtoolValue   struct{ command, data uint32 }
	ethtoolRequest struct {
		name  [unix.IFNAMSIZ]byte
		value *ethtoolValue
		_     [24 - unsafe.Sizeof(uintptr(0))]byte // struct ifreq's union has 24 bytes
	}
)

// ethtool runs one ethtool command with one value on an interface of the thread's namespace.
func ethtool(name string, command, data uint32) (uint32, error) {
	if len(name) >= unix.IFNAMSIZ {
		return 0, unix.ENAMETOOLONG
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	request := ethtoolRequest{value: &ethtoolValue{command: command, data: data}}
	copy(request.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return 0, os.NewSyscallError("ioctl SIOCETHTOOL", errno)
	}
	return request.value.data, nil
}
