//go:build linux

package rules

import (
	"slices"

	"github.com/google/nftables/expr"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/inject"
	"github.com/opendivert/divert/packet"
)

// Credentials prove the origin of a handle's injected packets.
type Credentials struct {
	Own    inject.Password // of packets for the handles below
	Served inject.Password // of packets for no handle
	Seal   inject.Seal     // of packets that come in
}

// NewCredentials returns new credentials.
func NewCredentials() Credentials {
	return Credentials{Own: inject.NewPassword(), Served: inject.NewPassword(), Seal: inject.NewSeal()}
}

// Vouch makes packets with the credentials carry the handle's cursor from now on, as long as the handle is open; until
// then every handle would see them. It is called once at most for an entry, and fails with ErrGone where others have
// removed the handle's rules.
func (e *Entry) Vouch(c Credentials) error {
	e.vouched.Store(&c) // first: Replace must not forget them
	added := 0
	err := e.change(func(t *tx) error {
		mine := func(r rule) bool { return r.owner != nil && e.is(*r.owner) }
		added = 0
		switch {
		case !slices.ContainsFunc(t.rules[Handles], mine):
			return ErrGone
		case !slices.ContainsFunc(t.rules[OutboundOrigin], mine):
			added = t.vouch(e.Owner, &c)
		}
		return nil
	})
	if err == nil {
		e.rules.Add(int32(added))
	}
	return err
}

// vouch adds the rules by which a handle's injected packets are known, and returns how many.
func (t *tx) vouch(o Owner, c *Credentials) (n int) {
	if c == nil {
		return 0
	}
	for chain := range numChains {
		if chains[chain].hook != nil {
			t.make(chain) // others may see injected packets anywhere
		}
	}
	// A cursor with the key 0 passes every handle: none is below it.
	const served = 0
	type origin struct {
		chain Chain
		exprs []expr.Any
	}
	in := []origin{{ForwardOrigin, inject.SealRule(c.Seal, o.Key.Pack(0))}}
	if o.Layer == uint8(packet.LayerNetwork) {
		in = []origin{
			{InboundOrigin, inject.SealRule(c.Seal, o.Key.Pack(0), forThisHost()...)},
			// A cursor that counts at LOCAL_IN has no room beside the note: no handle sees redirected packets.
			{InboundOrigin, inject.SealRule(c.Seal, cursor.Key(served).Pack(0))},
		}
	}
	for _, r := range append(in, []origin{
		{OutboundOrigin, inject.FragmentRule(c.Own)},
		{OutboundOrigin, inject.PasswordRule(c.Own, o.Key.Pack(0))},
		{OutboundOrigin, inject.PasswordRule(c.Served, cursor.Key(served).Pack(0))},
	}...) {
		t.insert(o, r.chain, r.exprs)
		n++
	}
	return n
}
