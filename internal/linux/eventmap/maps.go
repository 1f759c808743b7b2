//go:build linux

package eventmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// Names of the maps, as programs refer to them.
const (
	StorageMap  = "divert_sockets"  // of each socket: the body of its record, and its last peer
	RingMap     = "divert_events"   // records for user space
	CountersMap = "divert_counters" // see CounterLost
	PeersMap    = "divert_peers"    // peers that sockets without connections have met
	FlowsMap    = "divert_flows"    // FLOW: when each flow was last seen

	KnownMap     = "divert_older"     // of each socket older than the handle: the initial value of its storage
	ListenersMap = "divert_listeners" // the same, of those that listen, by address and port
)

// maxPeers is how many peers and flows the kernel remembers; the least recently used give way.
const maxPeers = 1 << 16

// Flags of maps (linux/bpf.h).
const (
	flagNoPrealloc = 1 << 0
	flagClone      = 1 << 9
)

// specs describes the maps of a handle, with room for so many older sockets.
func specs(ringSize, known uint32) []*ebpf.MapSpec {
	word := &btf.Int{Name: "unsigned int", Size: 4}
	long := &btf.Int{Name: "unsigned long", Size: 8}
	return []*ebpf.MapSpec{
		{Name: RingMap, Type: ebpf.RingBuf, MaxEntries: ringSize}, // first: its refusal says why
		{
			Name: StorageMap, Type: ebpf.SkStorage, KeySize: 4, ValueSize: uint32(StoredSize),
			Flags: flagNoPrealloc | flagClone, // children of a listener begin with a copy of the listener's
			Key:   word, Value: &btf.Array{Index: word, Type: long, Nelems: uint32(StoredSize) / 8},
		},
		{Name: CountersMap, Type: ebpf.Array, KeySize: 4, ValueSize: countersSize, MaxEntries: 1},
		{Name: PeersMap, Type: ebpf.LRUHash, KeySize: PeerKeySize, ValueSize: 8, MaxEntries: maxPeers},
		{Name: FlowsMap, Type: ebpf.LRUHash, KeySize: FlowKeySize, ValueSize: FlowValueSize, MaxEntries: maxPeers},
		{Name: KnownMap, Type: ebpf.Hash, KeySize: 8, ValueSize: uint32(StoredSize), MaxEntries: known, Flags: flagNoPrealloc},
		{Name: ListenersMap, Type: ebpf.Hash, KeySize: ListenerKeySize, ValueSize: uint32(StoredSize), MaxEntries: known, Flags: flagNoPrealloc},
	}
}

// Maps are the maps of a handle, by name.
type Maps map[string]*ebpf.Map

// Open makes the maps, with room for at least so many records and older sockets.
func Open(records int, known uint32) (Maps, error) {
	maps := Maps{}
	for _, spec := range specs(ringSize(records), known) {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			maps.Close()
			return nil, fmt.Errorf("map %s: %w", spec.Name, err)
		}
		maps[spec.Name] = m
	}
	return maps, nil
}

// ringSize returns the size of a ring for so many records: a power of two.
func ringSize(records int) uint32 {
	const perRecord = codegen.EventSize + 8
	size := uint64(max(records*perRecord, minRingSize))
	return uint32(1) << bits.Len64(size-1)
}

// minRingSize is 10,000 records: enough while user space is not scheduled.
const minRingSize = 1 << 20

// Close releases the maps. Programs that have them keep them.
func (m Maps) Close() (err error) {
	for _, one := range m {
		err = errors.Join(err, one.Close())
	}
	return err
}

// Counts are the counters that the programs keep.
type Counts struct {
	Lost    uint64 // records for which the ring had no room
	Dropped uint64 // operations refused without a record
}

// Counts returns the counters.
func (m Maps) Counts() (Counts, error) {
	var v [countersSize]byte
	if err := m[CountersMap].Lookup(uint32(0), &v); err != nil {
		return Counts{}, err
	}
	return Counts{
		Lost:    binary.NativeEndian.Uint64(v[CounterLost:]),
		Dropped: binary.NativeEndian.Uint64(v[CounterDropped:]),
	}, nil
}

// ForgetPeers makes the programs decide anew on the peers that they have let pass.
func (m Maps) ForgetPeers() error {
	var key [PeerKeySize]byte
	var value [8]byte
	var keys [][PeerKeySize]byte
	all := m[PeersMap].Iterate()
	for v := value[:]; all.Next(&key, &v); {
		keys = append(keys, key)
	}
	for _, k := range keys {
		if err := m[PeersMap].Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	return nil // sockets that were added or evicted meanwhile met one of the filters
}
