//go:build linux

package eventmap

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/sockdiag"
)

// leastKnown is how many older sockets the maps have room for at least.
const leastKnown = 1 << 16

// Room returns how many older sockets the maps are to have room for: twice as many as there are in the calling
// thread's namespace, since they are listed only later.
func Room() uint32 { return uint32(max(leastKnown, 2*sockdiag.Count())) }

// Adopt tells the programs about the sockets that the calling thread's namespace has. It leaves out sockets of no process, such
// as the kernel's own, and those that find no room because more have come since Room than it allowed for: they stay unseen.
func (m Maps) Adopt() error {
	holders := sockdiag.Holders()
	names := map[uint32]string{}
	list, err := sockdiag.List()
	if err != nil {
		return err
	}
	for i := range list {
		h, ok := holders[list[i].Inode]
		if !ok {
			continue
		}
		name, ok := names[h.Process]
		if !ok {
			name = h.Name()
			names[h.Process] = name
		}
		if err := m.adopt(&list[i], h.Process, name); err != nil && !errors.Is(err, unix.E2BIG) {
			return err
		}
	}
	return nil
}

// adopt enters a socket.
func (m Maps) adopt(s *sockdiag.Socket, process uint32, name string) error {
	body := stored(s, process, name)
	if err := m[KnownMap].Put(s.Cookie, body[:]); err != nil || !s.Listens() {
		return err
	}
	key := listenerKey(s.Local)
	return m[ListenersMap].Put(key[:], body[:])
}

// stored returns the beginning of a socket's storage.
func stored(s *sockdiag.Socket, process uint32, name string) (body [StoredSize]byte) {
	local, remote := s.Local.Addr(), s.Remote.Addr()
	if s.Remote.Port() == 0 && remote.Unmap().IsUnspecified() {
		remote = netip.IPv6Unspecified()
	}
	ne := binary.NativeEndian
	put := func(field int16) []byte { return body[Body(field):] }
	ne.PutUint64(put(codegen.EventEndpoint), s.Cookie)
	codegen.PutAddr(put(codegen.EventLocal), local)
	codegen.PutAddr(put(codegen.EventRemote), remote)
	ne.PutUint32(put(codegen.EventProcess), process)
	ne.PutUint16(put(codegen.EventLocalPort), s.Local.Port())
	ne.PutUint16(put(codegen.EventRemotePort), s.Remote.Port())
	put(codegen.EventProtocol)[0] = s.Protocol
	if !local.Is4In6() {
		put(codegen.EventIPv6)[0] = 1
	}
	if local.Unmap().IsLoopback() || s.Remote.Port() != 0 && local == remote {
		put(codegen.EventLoopback)[0] = 1
	}
	ne.PutUint32(put(codegen.EventFlags), FlagUser)
	copy(put(codegen.EventName)[:codegen.NameSize-1], name)
	return body
}

// listenerKey returns the key of a listener.
func listenerKey(local netip.AddrPort) (key [ListenerKeySize]byte) {
	codegen.PutAddr(key[:], local.Addr())
	binary.NativeEndian.PutUint64(key[16:], uint64(local.Port()))
	return key
}
