package filter_test

import (
	"errors"
	"fmt"

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
