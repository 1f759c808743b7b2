package windows

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"unsafe"

	sys "golang.org/x/sys/windows"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// TestWatchers: a process counts as long as it has a handle at the layer REFLECT, and no foreign object makes it count.
func TestWatchers(t *testing.T) {
	load(t)
	want := func(when string, pids ...uint32) {
		t.Helper()
		got, err := Watchers()
		if err != nil || !slices.Equal(got, pids) {
			t.Errorf("%s: %v, %v; want %v", when, got, err, pids)
		}
	}
	foreign, err := sys.SecurityDescriptorFromString("O:WDG:WDD:(A;;GA;;;WD)")
	if err != nil {
		t.Fatal(err)
	}
	attributes := sys.SecurityAttributes{SecurityDescriptor: foreign}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	for _, name := range []string{"4711-0123456789abcdef", "no number-1", "4711"} {
		object, err := sys.CreateEvent(&attributes, 1, 0, sys.StringToUTF16Ptr(fmt.Sprintf(`Global\%s%s`, markPrefix, name)))
		if err != nil {
			t.Fatal(err)
		}
		defer sys.CloseHandle(object)
	}
	network(t, "udp")
	want("no handle watches")
	var hs []*client
	for range 2 {
		hs = append(hs, open(t, config(t, "true", packet.LayerReflect, engine.FlagSniff|engine.FlagRecvOnly)))
	}
	want("two watch", uint32(os.Getpid()))
	hs[0].Close()
	want("one watches", uint32(os.Getpid()))
	hs[1].Close()
	want("both are closed")
}
