package filter_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

func ExampleCompile() {
	p, err := filter.Compile("outbound and tcp.DstPort in {80, 443, 8000-8999}", packet.LayerNetwork, filter.Extended)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(p.Len(), "tests")
	// Output: 2 tests
}

func ExampleError() {
	_, err := filter.Compile("outbound and tcp.dstport == 80", packet.LayerNetwork, filter.Extended)
	fmt.Println(err)
	// Output: filter: column 14: unknown word "tcp.dstport"; did you mean tcp.DstPort?
}

func ExampleError_Snippet() {
	_, err := filter.Compile("outbound and tcp.DstPort == 70000", packet.LayerNetwork, filter.Extended)
	var e *filter.Error
	if errors.As(err, &e) {
		fmt.Println(e.Snippet())
	}
	// Output:
	//   outbound and tcp.DstPort == 70000
	//                               ^^^^^
	// tcp.DstPort can never be 70000
	// hint: its values go from 0 to 65535
}

func ExampleFields() {
	for _, f := range filter.Fields() {
		if f.Name == "ip.TTL" {
			fmt.Printf("%s: %s, %s (%s..%s)\n", f.Name, f.Doc, f.Kind, f.Min, f.Max)
		}
	}
	// Output: ip.TTL: time to live, number (0..255)
}

// A filter built in Go: the fields are constants, and values have the types of the fields.
func ExampleExpr() {
	web := filter.TCPDstPort.In(80, 443).And(filter.Outbound)
	p, err := web.Compile(packet.LayerNetwork)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(web)
	fmt.Println(p.Len(), "tests")
	// Output:
	// tcp.DstPort in {80, 443} and outbound
	// 2 tests
}

func ExampleProgram_Explain() {
	p, err := filter.Compile("outbound and udp.DstPort == 53", packet.LayerNetwork, filter.Extended)
	if err != nil {
		fmt.Println(err)
		return
	}
	h := packet.Header{Src: netip.MustParseAddrPort("10.0.0.1:40000"), Dst: netip.MustParseAddrPort("192.0.2.1:123")}
	b, err := h.AppendUDP(nil, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	steps, matched, err := p.Explain(b, &packet.Address{Outbound: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range steps {
		fmt.Println(s.Test, "sees", s.Value)
	}
	fmt.Println("matched:", matched)
	// Output:
	// outbound sees 1
	// udp.DstPort = 53 sees 123
	// matched: false
}
