package packet

import (
	"bytes"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/race"
)

// TestAddressLayout checks each field against its place in the C layout (api.md 2.1).
func TestAddressLayout(t *testing.T) {
	flow := func(set func(d *FlowData)) Address {
		var a Address
		d := FlowData{LocalAddr: netip.IPv6Unspecified(), RemoteAddr: netip.IPv6Unspecified()}
		set(&d)
		a.SetFlow(d)
		return a
	}
	reflect := func(d ReflectData) (a Address) {
		a.SetReflect(d)
		return a
	}
	network := func(d NetworkData) (a Address) {
		a.SetNetwork(d)
		return a
	}
	mapped := netip.MustParseAddr("10.1.2.3")
	six := netip.MustParseAddr("1:2:3:4:5:6:7:8")
	sixWords := []byte{8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1, 0}
	mappedWords := []byte{3, 2, 1, 10, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	tests := []struct {
		name string
		addr Address
		at   int
		want []byte
	}{
		{"Timestamp", Address{Timestamp: -2}, 0, []byte{0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}},
		{"Layer", Address{Layer: LayerReflect}, 8, []byte{4}},
		{"Event", Address{Event: EventReflectClose}, 9, []byte{9}},
		{"Sniffed", Address{Sniffed: true}, 10, []byte{0x01}},
		{"Outbound", Address{Outbound: true}, 10, []byte{0x02}},
		{"Loopback", Address{Loopback: true}, 10, []byte{0x04}},
		{"Impostor", Address{Impostor: true}, 10, []byte{0x08}},
		{"IPv6", Address{IPv6: true}, 10, []byte{0x10}},
		{"IPChecksum", Address{IPChecksum: true}, 10, []byte{0x20}},
		{"TCPChecksum", Address{TCPChecksum: true}, 10, []byte{0x40}},
		{"UDPChecksum", Address{UDPChecksum: true}, 10, []byte{0x80}},
		{"Network.IfIdx", network(NetworkData{IfIdx: 0x04030201}), 16, []byte{1, 2, 3, 4}},
		{"Network.SubIfIdx", network(NetworkData{SubIfIdx: 0x04030201}), 20, []byte{1, 2, 3, 4}},
		{"Network.ProcessID", network(NetworkData{ProcessID: 0x04030201}), 52, []byte{1, 2, 3, 4}},
		{"Flow.EndpointId", flow(func(d *FlowData) { d.EndpointID = 0x0807060504030201 }), 16, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"Flow.ParentEndpointId", flow(func(d *FlowData) { d.ParentEndpointID = 0x0807060504030201 }), 24, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"Flow.ProcessId", flow(func(d *FlowData) { d.ProcessID = 0x04030201 }), 32, []byte{1, 2, 3, 4}},
		{"Flow.LocalAddr, IPv4", flow(func(d *FlowData) { d.LocalAddr = mapped }), 36, mappedWords},
		{"Flow.LocalAddr, IPv6", flow(func(d *FlowData) { d.LocalAddr = six }), 36, sixWords},
		{"Flow.RemoteAddr, IPv4", flow(func(d *FlowData) { d.RemoteAddr = mapped }), 52, mappedWords},
		{"Flow.RemoteAddr, IPv6", flow(func(d *FlowData) { d.RemoteAddr = six }), 52, sixWords},
		{"Flow.LocalPort", flow(func(d *FlowData) { d.LocalPort = 0x0201 }), 68, []byte{1, 2}},
		{"Flow.RemotePort", flow(func(d *FlowData) { d.RemotePort = 0x0201 }), 70, []byte{1, 2}},
		{"Flow.Protocol", flow(func(d *FlowData) { d.Protocol = 17 }), 72, []byte{17}},
		{"Reflect.Timestamp", reflect(ReflectData{Timestamp: -2}), 16, []byte{0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}},
		{"Reflect.ProcessId", reflect(ReflectData{ProcessID: 0x04030201}), 24, []byte{1, 2, 3, 4}},
		{"Reflect.Layer", reflect(ReflectData{Layer: LayerSocket}), 28, []byte{3, 0, 0, 0}},
		{"Reflect.Flags", reflect(ReflectData{Flags: 0x0807060504030201}), 32, []byte{1, 2, 3, 4, 5, 6, 7, 8}},
		{"Reflect.Priority", reflect(ReflectData{Priority: -2}), 40, []byte{0xFE, 0xFF}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := change(make([]byte, AddressSize), tt.at, tt.want...)
			got, err := tt.addr.MarshalBinary()
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%x, %v, want %x", got, err, want)
			}
			var back Address
			if err := back.UnmarshalBinary(want); err != nil || back != tt.addr {
				t.Errorf("back %+v, %v", back, err)
			}
		})
	}
}

func TestAddressLayerData(t *testing.T) {
	var a Address
	flow := FlowData{
		EndpointID: 1, ParentEndpointID: 2, ProcessID: 3,
		LocalAddr: netip.MustParseAddr("10.1.2.3"), RemoteAddr: netip.MustParseAddr("2001:db8::1"),
		LocalPort: 4, RemotePort: 5, Protocol: 6,
	}
	if a.SetFlow(flow); a.Flow() != flow {
		t.Errorf("flow %+v", a.Flow())
	}
	reflect := ReflectData{Timestamp: 1, ProcessID: 2, Layer: LayerFlow, Flags: 3, Priority: -4}
	if a.SetReflect(reflect); a.Reflect() != reflect {
		t.Errorf("reflect %+v", a.Reflect())
	}
	network := NetworkData{IfIdx: 1, SubIfIdx: 2}
	if a.SetNetwork(network); a.Network() != network {
		t.Errorf("network %+v", a.Network())
	}
	t.Run("zone and absent address", func(t *testing.T) {
		a.SetFlow(FlowData{LocalAddr: netip.MustParseAddr("fe80::1%eth0")})
		d := a.Flow()
		if d.LocalAddr != netip.MustParseAddr("fe80::1") || d.RemoteAddr != netip.IPv6Unspecified() {
			t.Errorf("flow %+v", d)
		}
	})
	t.Run("the union is the address's own memory", func(t *testing.T) {
		a.Union()[0] = 77
		if a.Network().IfIdx&0xFF != 77 {
			t.Error("a copy")
		}
	})
	t.Run("addresses are words in host order, the least significant first", func(t *testing.T) {
		addr := netip.MustParseAddr("2001:db8::1:2")
		a.SetFlow(FlowData{LocalAddr: addr})
		for i, w := range [4]uint32{0x0001_0002, 0, 0, 0x2001_0db8} {
			got := a.Union()[20+4*i:]
			if uint32(got[0])|uint32(got[1])<<8|uint32(got[2])<<16|uint32(got[3])<<24 != w {
				t.Errorf("word %d", i)
			}
		}
	})
}

func TestAddressTime(t *testing.T) {
	a := Address{Timestamp: clock.Now()}
	if d := time.Since(a.Time()); d < -time.Second || d > 10*time.Second {
		t.Errorf("captured %v ago", d)
	}
	if (&Address{}).Time() != (time.Time{}) {
		t.Error("the zero address has a time")
	}
	if n := testing.AllocsPerRun(10, func() { a.Time() }); n != 0 && !race.Enabled && runtime.GOOS != "windows" { // where the clock is a call of a DLL
		t.Errorf("%v allocations", n)
	}
}

func TestAddressWrongSize(t *testing.T) {
	a := Address{Timestamp: 5}
	for _, n := range []int{0, 79, 81} {
		if a.UnmarshalBinary(make([]byte, n)) == nil || a.Timestamp != 5 {
			t.Errorf("%d bytes", n)
		}
	}
}

func TestNames(t *testing.T) {
	for got, want := range map[string]string{
		LayerNetwork.String(): "NETWORK", LayerForward.String(): "NETWORK_FORWARD", LayerFlow.String(): "FLOW",
		LayerSocket.String(): "SOCKET", LayerReflect.String(): "REFLECT", Layer(5).String(): "Layer(5)",
		EventPacket.String(): "PACKET", EventFlowEstablished.String(): "ESTABLISHED", EventFlowDeleted.String(): "DELETED",
		EventSocketBind.String(): "BIND", EventSocketConnect.String(): "CONNECT", EventSocketListen.String(): "LISTEN",
		EventSocketAccept.String(): "ACCEPT", EventSocketClose.String(): "CLOSE", EventReflectOpen.String(): "OPEN",
		Event(10).String(): "Event(10)",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if EventReflectClose.String() != "CLOSE" {
		t.Errorf("%q", EventReflectClose)
	}
}

func FuzzAddressBinary(f *testing.F) {
	f.Add(make([]byte, AddressSize))
	f.Add(bytes.Repeat([]byte{0xFF}, AddressSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a Address
		if err := a.UnmarshalBinary(b); (err == nil) != (len(b) == AddressSize) {
			t.Fatal(err)
		}
		if len(b) != AddressSize {
			return
		}
		back, err := a.MarshalBinary()
		if err != nil || !bytes.Equal(back, b) {
			t.Fatalf("%x became %x, %v", b, back, err)
		}
		// Writing back the layer data just read keeps all but the padding.
		flow, reflect, network := a.Flow(), a.Reflect(), a.Network()
		var again Address
		if again.SetFlow(flow); again.Flow() != flow {
			t.Fatalf("flow %+v became %+v", flow, again.Flow())
		}
		if reflect.Layer < NumLayers {
			if again.SetReflect(reflect); again.Reflect() != reflect {
				t.Fatalf("reflect %+v became %+v", reflect, again.Reflect())
			}
		}
		if again.SetNetwork(network); again.Network() != network {
			t.Fatalf("network %+v became %+v", network, again.Network())
		}
	})
}
