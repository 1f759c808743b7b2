package filter

import (
	"fmt"
	"testing"

	"github.com/opendivert/divert/internal/vectors"
	"github.com/opendivert/divert/packet"
)

func TestVectorEval(t *testing.T) {
	type row struct {
		Layer        vectors.Layer
		Filter       string
		Packet, Addr vectors.Bytes
		Match        bool
	}
	vectors.Run(t, "eval", func(r row) error {
		var a packet.Address
		if err := a.UnmarshalBinary(r.Addr); err != nil {
			return err
		}
		p, err := compiled(r.Filter, packet.Layer(r.Layer), Strict)
		if err != nil {
			return err
		}
		match, err := p.Eval(r.Packet, &a)
		if err != nil || match != r.Match {
			return fmt.Errorf("Eval = %v, %v, want %v", match, err, r.Match)
		}
		if match := p.Match(r.Packet, &a); match != r.Match {
			return fmt.Errorf("Match = %v, want %v", match, r.Match)
		}
		return nil
	})
}

func TestVectorFormat(t *testing.T) {
	type row struct {
		Layer        vectors.Layer
		Filter, Text string
	}
	vectors.Run(t, "format", func(r row) error {
		p, err := compiled(r.Filter, packet.Layer(r.Layer), Strict)
		if err != nil {
			return err
		}
		if text, err := p.Format(); err != nil || text != r.Text {
			return fmt.Errorf("Format = %q, %v", text, err)
		}
		return nil
	})
}

func TestVectorObjects(t *testing.T) {
	type row struct {
		Layer  vectors.Layer
		Object string
		OK     bool
	}
	vectors.Run(t, "objects", func(r row) error {
		p, err := compiled(r.Object, packet.Layer(r.Layer), Strict)
		if (err == nil) != r.OK {
			return fmt.Errorf("Compile: %v", err)
		}
		if err != nil {
			return nil
		}
		object, err := p.Object()
		if err != nil {
			return err
		}
		if len(p.Tests()) == maxStrictTests { // quirk: the count does not fit into 8 bits
			if object != "@WinDiv_WW" {
				return fmt.Errorf("Object = %s", object)
			}
			return nil
		}
		again, err := parseObject(object, packet.Layer(r.Layer))
		if err != nil {
			return fmt.Errorf("%s is not accepted again: %v", object, err)
		}
		if twice, err := again.Object(); twice != object {
			return fmt.Errorf("%s becomes %s, %v", object, twice, err)
		}
		return nil
	})
}
