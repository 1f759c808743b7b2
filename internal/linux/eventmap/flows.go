//go:build linux

package eventmap

import "encoding/binary"

// key returns the key of the record's flow.
func (r *Record) key() (k [FlowKeySize]byte) {
	ne := binary.NativeEndian
	ne.PutUint64(k[0:], r.Data.EndpointID)
	for i, a := range [...][16]byte{r.Data.LocalAddr.As16(), r.Data.RemoteAddr.As16()} {
		ne.PutUint64(k[8+16*i:], binary.BigEndian.Uint64(a[0:]))
		ne.PutUint64(k[16+16*i:], binary.BigEndian.Uint64(a[8:]))
	}
	ne.PutUint16(k[40:], r.Data.LocalPort)
	ne.PutUint16(k[42:], r.Data.RemotePort)
	ne.PutUint32(k[44:], uint32(r.Data.Protocol))
	return k
}

// LastSeen returns when the last packet of a flow without connection was seen, and whether the kernel still remembers it.
func (m Maps) LastSeen(r *Record) (at int64, ok bool) {
	key := r.key()
	err := m[FlowsMap].Lookup(key[:], &at)
	return at, err == nil
}

// Forget makes the kernel report a flow without connection again when its next packet comes.
func (m Maps) Forget(r *Record) {
	key := r.key()
	_ = m[FlowsMap].Delete(key[:]) // it may be gone already
}
