//go:build linux

package detour

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/prog"
)

// Datagrams says which datagrams are led, and where. All datagrams of a socket to one destination go to one alias, an address of
// this host that stands for the two. Each pair has its own alias, so the listener knows by the address that a datagram came for
// which socket sent it, and to which destination.
//
// An alias of IPv4 is 127.x.y.z. IPv6 has one loopback address only, so its aliases are within the prefix of a Device.
type Datagrams struct {
	Filter *prog.Program // of LayerSocket, see prog.Program.AtConnect
	Port   uint16        // of the listener, at all addresses; its sockets have ListenerPriority
	Prefix netip.Prefix  // of Device; the zero Prefix if there is no IPv6
}

// Alias4 returns an alias of IPv4.
func Alias4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(n >> 16), byte(n >> 8), byte(n)})
}

// Alias6 returns an alias of IPv6.
func (g *Datagrams) Alias6(n uint32) netip.Addr {
	ip := g.Prefix.Addr().As16()
	binary.BigEndian.PutUint32(ip[12:], n)
	return netip.AddrFrom16(ip)
}

// Number returns the number of an alias; any other address is not ok.
func (g *Datagrams) Number(a netip.Addr) (n uint32, ok bool) {
	if a = a.Unmap(); a.Is4() {
		ip := a.As4()
		return binary.BigEndian.Uint32(ip[:]) &^ (0xFF << 24), ip[0] == 127
	}
	ip := a.As16()
	return binary.BigEndian.Uint32(ip[12:]), g.Prefix.Contains(a)
}

// Numbers of aliases: those of IPv4 must not be 127.0.0.0/24, where hosts have their own, nor the broadcast address.
const (
	firstAlias  = 1 << 8
	aliases     = 1<<24 - 2*firstAlias
	aliasTries  = 4 // numbers that are tried for an alias; those that are taken were given a long time ago
	noAliasMask = 0x00FFFFFF
)

// Talk is the traffic of one socket to one destination.
type Talk struct {
	Dst       netip.AddrPort // an IPv4 address is never a mapped one
	Process   uint32         // that sent the first datagram, as the initial namespace numbers it
	Cookie    uint64         // of the socket
	Connected bool           // to Dst, once at least
}

// Offsets in a talk, a value of talksMap, whose key is the number of the alias.
const (
	talkAddr      = 0  // as aimAddr
	talkPort      = 16 // as aimPort
	talkProcess   = 20 // 4 bytes
	talkCookie    = 24 // 8 bytes
	talkConnected = 32 // 4 bytes
	talkSize      = 40
)

// Offsets in a key of waysMap, whose value is the number of the alias.
const (
	wayAddr   = 0
	wayCookie = 16
	wayPort   = 24 // 4 bytes, as aimPort, and 4 of zeros
	waySize   = 32
)

// Offsets in a value of speakersMap, whose key is the cookie of a socket.
const (
	speakerReleased = 0 // as aimReleased
	speakerSize     = 8
)

// The names of the maps.
const (
	talksMap    = "divert_talks"
	waysMap     = "divert_ways"
	speakersMap = "divert_speakers"
)

// The stack frame below what decisions use.
const (
	frameWay    = codegen.EventScratch - int16(waySize)
	frameTalk   = frameWay - int16(talkSize)
	frameNumber = frameTalk - 8
	frameZero   = frameNumber - int16(speakerSize)
)

// send leads a datagram that is sent to an address.
func (b *builder) send(family int) (bool, error) {
	if b.cfg.UDP == nil {
		return false, nil
	}
	udp := b.begin(cgprog.AddrProtocol)
	b.Leave(cgprog.Allow)
	b.Mark(udp)
	return b.datagram(family, false)
}

// datagram replaces the destination, of one datagram or of all that follow a connect, by the alias of the socket and the
// destination. It leaves the program in any case, and reports whether anything can match.
func (b *builder) datagram(family int, connects bool) (bool, error) {
	b.describe(family)
	b.passListener()
	b.refuseAlias(family)
	b.Process()
	b.Cookie()
	b.way()
	known, none := b.NewLabel(), b.NewLabel()
	b.LookUp(waysMap, frameWay)
	b.JumpImm64(asm.JNE, asm.R0, 0, known)
	if leads, err := b.decide(b.cfg.UDP.Filter, cgprog.ProtoUDP); !leads || err != nil {
		b.Mark(known, none)
		b.Leave(cgprog.Allow)
		return false, err
	}
	b.passOtherDetours(othersUDP)
	b.passSpared()
	b.passLinkLocal()
	b.passBound(family)
	if !b.cfg.UDP.Prefix.IsValid() {
		b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventIPv6), asm.Byte))
		four := b.NewLabel()
		b.JumpImm64(asm.JEq, asm.R1, 0, four)
		b.refuse(unix.ENETUNREACH)
		b.Mark(four)
	}
	b.enter(none)
	b.LookUp(waysMap, frameWay)
	b.JumpImm64(asm.JNE, asm.R0, 0, known)
	b.Mark(none)
	b.count(stateFull)
	b.refuse(unix.ENOBUFS)
	b.Mark(known)
	b.Emit(asm.LoadMem(asm.R9, asm.R0, 0, asm.Word))
	if connects {
		b.noteConnected()
	}
	b.aim(family)
	b.Leave(cgprog.Allow)
	return true, nil
}

// ListenerPriority is the priority (SO_PRIORITY) of sockets that answer datagrams. All detours know the sockets by it and let
// their answers pass. It takes CAP_NET_ADMIN to set, and means nothing on the loopback interface.
const ListenerPriority = 0x64697672

// passListener lets the answers of listeners pass, also those of other detours.
func (b *builder) passListener() {
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.AddrSock, asm.DWord), asm.LoadMem(asm.R1, asm.R1, cgprog.SockPriority, asm.Word))
	b.AllowIf(asm.JEq, asm.R1, ListenerPriority)
}

// refuseAlias refuses datagrams that an application sends to an alias by itself. Datagrams of the alias's own socket pass: if an
// IPv6 socket is connected to a mapped address, the kernel treats the peer as if the application had named it.
func (b *builder) refuseAlias(family int) {
	refuse, end := b.NewLabel(), b.NewLabel()
	b.number(family, end)
	b.Emit(asm.StoreMem(bpfasm.Frame, frameNumber, asm.R2, asm.Word))
	b.LookUp(talksMap, frameNumber)
	b.JumpImm64(asm.JEq, asm.R0, 0, refuse)
	b.Emit(asm.LoadMem(asm.R9, asm.R0, talkCookie, asm.DWord), asm.Mov.Reg(asm.R1, bpfasm.Context), asm.FnGetSocketCookie.Call())
	b.JumpReg(asm.JNE, asm.R0, asm.R9, refuse)
	b.Leave(cgprog.Allow)
	b.Mark(refuse)
	b.refuse(unix.ECONNREFUSED)
	b.Mark(end)
}

// number leaves the number of the alias in the context's address in R2, or goes to none if the address is not an alias of the
// listener.
func (b *builder) number(family int, none bpfasm.Label) {
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.AddrPort, asm.Word), asm.HostTo(asm.BE, asm.R1, asm.Half))
	b.JumpImm64(asm.JNE, asm.R1, int32(b.cfg.UDP.Port), none)
	word := func(at int16) { // R1 and R2: a word of the address
		b.Emit(asm.LoadMem(asm.R2, bpfasm.Context, at, asm.Word), asm.HostTo(asm.BE, asm.R2, asm.Word), asm.Mov.Reg(asm.R1, asm.R2))
	}
	loopback := func() {
		b.Emit(asm.RSh.Imm(asm.R1, 24))
		b.JumpImm64(asm.JNE, asm.R1, 127, none)
		b.Emit(asm.And.Imm(asm.R2, noAliasMask))
	}
	if family == cgprog.INET {
		word(cgprog.AddrIP4)
		loopback()
		return
	}
	six, end := b.NewLabel(), b.NewLabel()
	for i, want := range []uint32{0, 0, 0xFFFF} {
		word(cgprog.AddrIP6 + 4*int16(i))
		b.JumpImm32(asm.JNE, asm.R1, want, six)
	}
	word(cgprog.AddrIP6 + 12)
	loopback()
	b.Jump(end)
	b.Mark(six)
	if b.cfg.UDP.Prefix.IsValid() {
		ip := b.cfg.UDP.Prefix.Addr().As16()
		for i := range 3 {
			word(cgprog.AddrIP6 + 4*int16(i))
			b.JumpImm32(asm.JNE, asm.R1, binary.BigEndian.Uint32(ip[4*i:]), none)
		}
		word(cgprog.AddrIP6 + 12)
	} else {
		b.Jump(none)
	}
	b.Mark(end)
}

// way makes the key of waysMap.
func (b *builder) way() {
	for i := int16(0); i < 16; i += 8 {
		b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventRemote)+i, asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameWay+wayAddr+i, asm.R1, asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameTalk+talkAddr+i, asm.R1, asm.DWord))
	}
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameWay+wayCookie, asm.R1, asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameTalk+talkCookie, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, bpfasm.Context, cgprog.AddrPort, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameWay+wayPort, asm.R1, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameTalk+talkPort, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventProcess), asm.Word),
		asm.StoreMem(bpfasm.Frame, frameTalk+talkProcess, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(bpfasm.Frame, frameWay+wayPort+4, asm.R1, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameTalk+talkConnected, asm.R1, asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameZero, asm.R1, asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameNumber, asm.R1, asm.DWord),
	)
}

// passBound lets datagrams pass whose socket is bound to a device, or has named an interface (IP_UNICAST_IF, IPV6_UNICAST_IF),
// or refuses them: they cannot get to the alias.
func (b *builder) passBound(family int) {
	bound, end := b.NewLabel(), b.NewLabel()
	read := func(member int32) { // of the structure whose address stands at frameTask
		b.readTask(member, frameTask+8, 4)
		b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, frameTask+8, asm.Word))
		b.JumpImm64(asm.JNE, asm.R1, 0, bound)
	}
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Context, cgprog.AddrSock, asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameKey, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R1, 0, asm.Word),
	)
	b.JumpImm64(asm.JNE, asm.R1, 0, bound)
	b.Point(asm.R1, frameTask) // a copy of the address, of which the verifier does not know that it is a socket's
	b.Point(asm.R3, frameKey)
	b.Emit(asm.Mov.Imm(asm.R2, 8), asm.FnProbeReadKernel.Call())
	if family == cgprog.INET {
		read(b.layout.interface4)
	} else if b.layout.six >= 0 {
		read(b.layout.interface4) // for datagrams to mapped addresses
		b.readTask(b.layout.six, frameTask, 8)
		read(b.layout.interface6)
	}
	b.Jump(end)
	b.Mark(bound)
	if b.cfg.RefuseOthers {
		b.refuse(unix.ENETUNREACH)
	} else {
		b.Leave(cgprog.Allow)
	}
	b.Mark(end)
}

// enter enters the socket, its talk and the way there, and goes to none if there is no room. Another thread may do the same for
// the same socket and destination: the existing way counts.
func (b *builder) enter(none bpfasm.Label) {
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, frameWay+wayCookie, asm.DWord), asm.StoreMem(bpfasm.Frame, frameKey, asm.R1, asm.DWord))
	b.Update(speakersMap, frameKey, frameZero, cgprog.UpdateNoExist) // before the talk: see Detour.Talks
	entered, end := b.NewLabel(), b.NewLabel()
	for range aliasTries {
		b.Emit(
			asm.LoadMapValue(asm.R1, 0, 0).WithReference(stateMap),
			asm.Mov.Imm(asm.R9, 1),
			fetchAdd(asm.R1, asm.R9, stateAliases),
			asm.Mod.Imm(asm.R9, aliases),
			asm.Add.Imm(asm.R9, firstAlias),
			asm.StoreMem(bpfasm.Frame, frameNumber, asm.R9, asm.Word),
		)
		b.Update(talksMap, frameNumber, frameTalk, cgprog.UpdateNoExist)
		b.JumpImm64(asm.JEq, asm.R0, 0, entered)
	}
	b.Jump(none)
	b.Mark(entered)
	b.Update(waysMap, frameWay, frameNumber, cgprog.UpdateNoExist)
	b.JumpImm64(asm.JEq, asm.R0, 0, end)
	b.Remove(talksMap, frameNumber)
	b.Mark(end)
	b.Emit(asm.Mov.Imm(asm.R0, 0)) // so that the end has an instruction
}

// noteConnected notes that the socket is connected to the alias in R9.
func (b *builder) noteConnected() {
	end := b.NewLabel()
	b.Emit(asm.StoreMem(bpfasm.Frame, frameNumber, asm.R9, asm.Word))
	b.LookUp(talksMap, frameNumber)
	b.JumpImm64(asm.JEq, asm.R0, 0, end)
	b.Emit(asm.StoreImm(asm.R0, talkConnected, 1, asm.Word))
	b.Mark(end)
}

// aim makes the alias whose number is in R9 the destination.
func (b *builder) aim(family int) {
	words := func(at int16, fixed ...uint32) {
		for i, w := range fixed {
			b.Emit(asm.Mov.Imm32(asm.R1, int32(w)), asm.HostTo(asm.BE, asm.R1, asm.Word), asm.StoreMem(bpfasm.Context, at+4*int16(i), asm.R1, asm.Word))
		}
	}
	last := func(at int16, upper int32) {
		b.Emit(asm.Mov.Reg(asm.R1, asm.R9), asm.Or.Imm32(asm.R1, upper), asm.HostTo(asm.BE, asm.R1, asm.Word), asm.StoreMem(bpfasm.Context, at, asm.R1, asm.Word))
	}
	b.Emit(asm.Mov.Imm32(asm.R1, int32(b.cfg.UDP.Port)), asm.HostTo(asm.BE, asm.R1, asm.Half), asm.StoreMem(bpfasm.Context, cgprog.AddrPort, asm.R1, asm.Word))
	if family == cgprog.INET {
		last(cgprog.AddrIP4, 127<<24)
		return
	}
	four, end := b.NewLabel(), b.NewLabel()
	b.Emit(asm.LoadMem(asm.R2, bpfasm.Frame, cgprog.Record(codegen.EventIPv6), asm.Byte))
	b.JumpImm64(asm.JEq, asm.R2, 0, four)
	if b.cfg.UDP.Prefix.IsValid() {
		ip := b.cfg.UDP.Prefix.Addr().As16()
		words(cgprog.AddrIP6, binary.BigEndian.Uint32(ip[0:]), binary.BigEndian.Uint32(ip[4:]), binary.BigEndian.Uint32(ip[8:]))
		last(cgprog.AddrIP6+12, 0)
	}
	b.Jump(end)
	b.Mark(four)
	words(cgprog.AddrIP6, 0, 0, 0xFFFF)
	last(cgprog.AddrIP6+12, 127<<24)
	b.Mark(end)
}

// receive gives the application the destination as the sender of a datagram.
func (b *builder) receive(family int) bool {
	if b.cfg.UDP == nil {
		return false
	}
	udp := b.begin(cgprog.AddrProtocol)
	b.Leave(cgprog.Allow)
	b.Mark(udp)
	b.unalias(family)
	return true
}

// unalias replaces an alias in the context by the destination that it stands for, and ends the program.
func (b *builder) unalias(family int) {
	end := b.NewLabel()
	b.number(family, end)
	b.Emit(asm.StoreMem(bpfasm.Frame, frameNumber, asm.R2, asm.Word))
	b.LookUp(talksMap, frameNumber)
	b.JumpImm64(asm.JEq, asm.R0, 0, end)
	b.answer(family, talkAddr, talkPort)
	b.Mark(end)
	b.Leave(cgprog.Allow)
}

// Talk returns the talk of an alias; it is not ok if there is none, or none any more.
func (d *Detour) Talk(alias uint32) (t Talk, ok bool, err error) {
	var v [talkSize]byte
	if err := d.maps[talksMap].Lookup(alias, &v); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			err = nil
		}
		return t, false, err
	}
	return parseTalk(&v), true, nil
}

func parseTalk(v *[talkSize]byte) (t Talk) {
	t.Dst = parseAddrPort(v[talkAddr:], v[talkPort:])
	t.Process = binary.NativeEndian.Uint32(v[talkProcess:])
	t.Cookie = binary.NativeEndian.Uint64(v[talkCookie:])
	t.Connected = binary.NativeEndian.Uint32(v[talkConnected:]) != 0
	return t
}

// Talks returns the talks of the aliases, and the cookies of their sockets that the applications have closed, with the times,
// CLOCK_MONOTONIC in nanoseconds. Talks and sockets that come or go meanwhile may be missing. A socket is entered before its
// talks, so if that of a talk is missing, it was forgotten (ForgetSpeaker).
func (d *Detour) Talks() (talks map[uint32]Talk, released map[uint64]int64, err error) {
	talks, released = map[uint32]Talk{}, map[uint64]int64{}
	var alias uint32
	var v [talkSize]byte
	all := d.maps[talksMap].Iterate()
	for all.Next(&alias, &v) {
		talks[alias] = parseTalk(&v)
	}
	if err = all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return talks, released, err
	}
	var cookie, at uint64
	all = d.maps[speakersMap].Iterate()
	for all.Next(&cookie, &at) {
		if at != 0 {
			released[cookie] = int64(at)
		}
	}
	if err = all.Err(); errors.Is(err, ebpf.ErrIterationAborted) {
		err = nil
	}
	return talks, released, err
}

// Speaks reports whether a socket is known: a datagram of it was led, and it was not forgotten since.
func (d *Detour) Speaks(cookie uint64) bool {
	var at uint64
	return d.maps[speakersMap].Lookup(cookie, &at) == nil
}

// ForgetTalk removes a talk. The next datagram of the socket to its destination gets another alias.
func (d *Detour) ForgetTalk(alias uint32, t Talk) {
	var way [waySize]byte
	ip := t.Dst.Addr().As16()
	binary.NativeEndian.PutUint64(way[wayAddr:], binary.BigEndian.Uint64(ip[:]))
	binary.NativeEndian.PutUint64(way[wayAddr+8:], binary.BigEndian.Uint64(ip[8:]))
	binary.NativeEndian.PutUint64(way[wayCookie:], t.Cookie)
	binary.BigEndian.PutUint16(way[wayPort:], t.Dst.Port())
	_ = d.maps[waysMap].Delete(way)
	_ = d.maps[talksMap].Delete(alias)
}

// ForgetSpeaker removes a socket whose talks are forgotten, and which the application has closed.
func (d *Detour) ForgetSpeaker(cookie uint64) { _ = d.maps[speakersMap].Delete(cookie) }

// datagramMaps returns the maps of datagrams.
func datagramMaps(limit uint32) []*ebpf.MapSpec {
	const preallocNone = 1 << 0 // BPF_F_NO_PREALLOC
	return []*ebpf.MapSpec{
		{Name: talksMap, Type: ebpf.Hash, KeySize: 4, ValueSize: talkSize, MaxEntries: limit, Flags: preallocNone},
		{Name: waysMap, Type: ebpf.Hash, KeySize: waySize, ValueSize: 4, MaxEntries: limit, Flags: preallocNone},
		{Name: speakersMap, Type: ebpf.Hash, KeySize: 8, ValueSize: speakerSize, MaxEntries: limit, Flags: preallocNone},
	}
}

// check refuses settings that no program can be made of.
func (g *Datagrams) check() error {
	if g.Prefix.IsValid() && g.Prefix.Bits() != prefixBits {
		return fmt.Errorf("the aliases are a network of /%d, not %v", prefixBits, g.Prefix)
	}
	return nil
}
