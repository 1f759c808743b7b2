package redirect

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// dialHeld makes the other half of a connection whose SYN is held, and then lets the SYN go on, or refuses it. summed
// means that the SYN's checksum is complete.
func (l *Listener) dialHeld(f *flow, summed bool) {
	ctx, cancel := context.WithTimeout(l.ctx, l.options.DialTimeout)
	defer cancel()
	upstream, err := l.dialFlow(ctx, f)
	syn := l.table.release(f, upstream)
	if err != nil || l.ctx.Err() != nil {
		l.refused.Add(1)
		l.table.remove(f)
		if upstream != nil {
			_ = upstream.Close()
		}
		if !silent(err) || l.ctx.Err() != nil {
			l.answerReset(f, syn)
		}
		return
	}
	p := divert.Packet{Data: syn, Addr: f.toward}
	p.Addr.IPChecksum, p.Addr.TCPChecksum = true, summed
	if p.SetSrc(f.alias) == nil && p.SetDst(netip.AddrPortFrom(f.client.Addr(), l.port)) == nil {
		_ = l.handle.Send(&p) // if it is lost, TCP sends it again
	}
}

// silent reports whether a destination has not answered at all, so that the application gets no answer either.
func silent(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}

// answerReset refuses a SYN.
func (l *Listener) answerReset(f *flow, syn []byte) {
	var h packet.Parsed
	if !h.Parse(syn) {
		return
	}
	if b, ok := packet.AppendReset(nil, syn, &h); ok {
		a := f.toward
		a.IPChecksum, a.TCPChecksum = true, true
		_ = l.handle.Send(&divert.Packet{Data: b, Addr: a})
	}
}
