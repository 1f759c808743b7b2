//go:build linux

package rules

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/nfnl"
)

// The table is read and changed with nf_tables' own optimistic transactions (net/netfilter/nf_tables_api.c). Each
// commit in a namespace raises the number of the rules' generation. A change reads that number and what it builds
// on, and sends its commands together with the number; the kernel refuses them all where somebody else has committed
// in between. So there is no lock that a process could hold: only a commit makes another one repeat its work.
//
// The messages are built here because the library that knows the expressions (google/nftables) can send neither a
// generation nor a transaction with a single answer.

// nfgenmsgLen is the length of struct nfgenmsg (linux/netfilter/nfnetlink.h), in bytes.
const nfgenmsgLen = nfnl.HeaderLen - unix.SizeofNlMsghdr

// Numbers of linux/netfilter/nf_tables.h that x/sys does not name.
const (
	tableOwner  = 7 // NFTA_TABLE_OWNER
	flagDormant = 1 // NFT_TABLE_F_DORMANT
	flagOwner   = 2 // NFT_TABLE_F_OWNER
)

// conn is a socket that reads and changes nf_tables in the namespace in which the calling thread opened it. It is for one
// goroutine. Its calls block the thread, because an answer is there as soon as a request is sent.
type conn struct {
	fd        int
	buf       []byte // of a datagram
	network   uint64 // the namespace's number
	broken    bool   // a call has failed
	committed bool   // it has changed rules
}

const (
	// receiveBuffer is the receive buffer of a socket, in bytes. Without CAP_NET_ADMIN in the initial user namespace
	// the kernel may grant less; dumps then come in smaller parts.
	receiveBuffer = 1 << 20
	// datagramSize is more than the kernel puts into a datagram of a dump, in bytes (net/netlink/af_netlink.c).
	datagramSize = 64 << 10
)

// answerTimeout turns an answer that is lost into an error.
var answerTimeout = unix.Timeval{Sec: 30}

// dial returns a socket in the namespace of the calling thread: the one that is kept there, or a new one.
func dial() (*conn, error) {
	network, err := netns.CurrentInode()
	if err != nil {
		return nil, err
	}
	if c := sockets.take(uint64(network)); c != nil {
		return c, nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		// An error need not repeat the message that failed.
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &answerTimeout),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a netfilter socket: %w", err)
	}
	c := &conn{fd: fd, buf: make([]byte, datagramSize), network: uint64(network)}
	nfnl.SetReceiveBuffer(c.fd, receiveBuffer)
	return c, nil
}

// Close closes the socket, or keeps it for the next caller that needs one here.
func (c *conn) Close() {
	if c.broken || !sockets.put(c) {
		c.end()
	}
}

// end closes the socket. When the kernel closes any socket of netfilter it waits until all processors have left the rules that
// were changed last (nft_rcv_nl_event, net/netfilter/nf_tables_api.c), some 10 ms, for which no caller has to wait.
func (c *conn) end() {
	if !c.committed {
		_ = unix.Close(c.fd)
		return
	}
	go unix.Close(c.fd)
}

// send sends messages in one datagram.
func (c *conn) send(messages ...netlink.Message) error {
	var b []byte
	for i := range messages {
		m := &messages[i]
		m.Header.Length = uint32(unix.SizeofNlMsghdr + nfnl.Align(len(m.Data)))
		m.Data = append(m.Data, make([]byte, nfnl.Align(len(m.Data))-len(m.Data))...)
		one, err := m.MarshalBinary()
		if err != nil {
			return err
		}
		b = append(b, one...)
	}
	nfnl.SetSendBuffer(c.fd, 2*len(b)+receiveBuffer)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		c.broken = true
		return fmt.Errorf("send %d commands of %d bytes: %w", len(messages), len(b), err)
	}
	return nil
}

// receive receives a datagram.
func (c *conn) receive() (nfnl.MessageIter, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if err == nil {
			return nfnl.Messages(c.buf[:n]), nil
		}
		if err != unix.EINTR {
			c.broken = true
			return nfnl.MessageIter{}, os.NewSyscallError("receive an answer of nf_tables", err)
		}
	}
}

// message returns a message of nf_tables about the table's family.
func message(kind uint16, flags netlink.HeaderFlags, build func(*netlink.AttributeEncoder)) (netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	if build != nil {
		build(e)
	}
	attributes, err := e.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(nfnl.Type(unix.NFNL_SUBSYS_NFTABLES, kind)), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attributes...),
	}, err
}

// ask sends a request and gives the attributes of each answer to f, which keeps none of their memory.
func (c *conn) ask(kind uint16, flags netlink.HeaderFlags, build func(*netlink.AttributeEncoder), f func(nfnl.AttrIter)) error {
	m, err := message(kind, flags, build)
	if err == nil {
		err = c.send(m)
	}
	for done := false; err == nil && !done; {
		var answers nfnl.MessageIter
		if answers, err = c.receive(); err != nil {
			break
		}
		done, err = take(&answers, f)
		done = done || flags&netlink.Dump == 0
	}
	return err
}

// take gives the attributes of each answer in a datagram to f and reports whether a dump has ended.
func take(answers *nfnl.MessageIter, f func(nfnl.AttrIter)) (done bool, err error) {
	for answers.Next() {
		switch answers.Type {
		case unix.NLMSG_ERROR:
			return true, answers.Errno()
		case unix.NLMSG_DONE:
			if len(answers.Body) < 4 {
				return true, nil
			}
			return true, answers.Errno()
		default:
			f(nfnl.Attrs(answers.Body))
		}
	}
	return false, nil
}

// generation returns the number of the rules' generation in the namespace.
func (c *conn) generation() (id uint32, err error) {
	err = c.ask(unix.NFT_MSG_GETGEN, 0, nil, func(a nfnl.AttrIter) {
		for a.Next() {
			if a.Type == unix.NFTA_GEN_ID {
				id = a.Uint32()
			}
		}
	})
	return id, err
}

// tableState is the table's state in the kernel.
type tableState struct {
	there bool
	flags uint32
	owner uint32 // the port of the socket that the table belongs to, with flagOwner
}

func (c *conn) table() (s tableState, err error) {
	err = c.ask(unix.NFT_MSG_GETTABLE, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_TABLE_NAME, tableName)
	}, func(a nfnl.AttrIter) {
		for s.there = true; a.Next(); {
			switch a.Type {
			case unix.NFTA_TABLE_FLAGS:
				s.flags = a.Uint32()
			case tableOwner:
				s.owner = a.Uint32()
			}
		}
	})
	if errors.Is(err, unix.ENOENT) {
		return tableState{}, nil
	}
	return s, err
}

// chainState is a chain's state in the kernel.
type chainState struct {
	table, name, kind string
	hooked            bool
	hook, policy      uint32
	priority          int32
}

// eachChain gives the chains of the table to f.
func (c *conn) eachChain(f func(chainState)) error {
	return c.ask(unix.NFT_MSG_GETCHAIN, netlink.Dump, nil, func(a nfnl.AttrIter) {
		if s := parseChain(a); s.table == tableName {
			f(s)
		}
	})
}

func parseChain(a nfnl.AttrIter) (s chainState) {
	for a.Next() {
		switch a.Type {
		case unix.NFTA_CHAIN_TABLE:
			s.table = text(a.Data)
		case unix.NFTA_CHAIN_NAME:
			s.name = text(a.Data)
		case unix.NFTA_CHAIN_TYPE:
			s.kind = text(a.Data)
		case unix.NFTA_CHAIN_POLICY:
			s.policy = a.Uint32()
		case unix.NFTA_CHAIN_HOOK:
			s.hooked = true
			for h := nfnl.Attrs(a.Data); h.Next(); {
				switch h.Type {
				case unix.NFTA_HOOK_HOOKNUM:
					s.hook = h.Uint32()
				case unix.NFTA_HOOK_PRIORITY:
					s.priority = int32(h.Uint32())
				}
			}
		}
	}
	return s
}

// text returns the text in an attribute, which ends with a zero byte.
func text(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}

// rule is a rule of a chain. Its expressions are not read: only the package's own addition to the list, and
// not sent yet, has any.
type rule struct {
	number uint64  // the kernel's, 0 for a rule that is not in the kernel yet
	data   []byte  // userdata
	owner  *Owner  // nil for a rule that belongs to no handle
	demand *demand // of a rule that holds a handle's demand, else nil
	exprs  []expr.Any
}

// owned returns a new rule of a handle.
func owned(o Owner, e []expr.Any) rule { return rule{data: o.userData(), owner: &o, exprs: e} }

// rules returns the rules of a chain, in order.
func (c *conn) rules(chain string) (rs []rule, err error) {
	err = c.ask(unix.NFT_MSG_GETRULE, netlink.Dump, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, tableName)
		e.String(unix.NFTA_RULE_CHAIN, chain)
	}, func(a nfnl.AttrIter) {
		if table, in, r := parseRule(a); table == tableName && in == chain {
			rs = append(rs, r)
		}
	})
	return rs, err
}

func parseRule(a nfnl.AttrIter) (table, chain string, r rule) {
	for a.Next() {
		switch a.Type {
		case unix.NFTA_RULE_TABLE:
			table = text(a.Data)
		case unix.NFTA_RULE_CHAIN:
			chain = text(a.Data)
		case unix.NFTA_RULE_HANDLE:
			if len(a.Data) == 8 {
				r.number = binary.BigEndian.Uint64(a.Data)
			}
		case unix.NFTA_RULE_USERDATA:
			r.data = bytes.Clone(a.Data)
			if o, ok := parseOwner(a.Data); ok {
				r.owner = &o
			} else if d, ok := parseDemand(a.Data); ok {
				r.demand = &d
			}
		}
	}
	return table, chain, r
}

// counter returns the value of a counter of the table, in packets; it fails with unix.ENOENT if there is none.
func (c *conn) counter(name string) (packets uint64, err error) {
	err = c.ask(unix.NFT_MSG_GETOBJ, 0, counterAttributes(name), func(a nfnl.AttrIter) {
		for a.Next() {
			if a.Type != unix.NFTA_OBJ_DATA {
				continue
			}
			for d := nfnl.Attrs(a.Data); d.Next(); {
				if d.Type == unix.NFTA_COUNTER_PACKETS && len(d.Data) == 8 {
					packets = binary.BigEndian.Uint64(d.Data)
				}
			}
		}
	})
	return packets, err
}

func counterAttributes(name string) func(*netlink.AttributeEncoder) {
	return func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_OBJ_TABLE, tableName)
		e.String(unix.NFTA_OBJ_NAME, name)
		e.Uint32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	}
}

// batch is a list of commands that the kernel carries out together or not at all.
type batch struct {
	messages []netlink.Message
	sets     uint32 // anonymous sets so far
	err      error  // of the first message that could not be built
}

func (b *batch) add(kind uint16, flags netlink.HeaderFlags, build func(*netlink.AttributeEncoder)) {
	m, err := message(kind, flags, build)
	if b.err == nil {
		b.err = err
	}
	b.messages = append(b.messages, m)
}

func (b *batch) newTable() {
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, func(e *netlink.AttributeEncoder) { e.String(unix.NFTA_TABLE_NAME, tableName) })
}

func (b *batch) deleteTable() {
	b.add(unix.NFT_MSG_DELTABLE, 0, func(e *netlink.AttributeEncoder) { e.String(unix.NFTA_TABLE_NAME, tableName) })
}

// newChain adds a chain as it is defined, which may exist.
func (b *batch) newChain(d *nftables.Chain) {
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, tableName)
		e.String(unix.NFTA_CHAIN_NAME, d.Name)
		if d.Hooknum == nil {
			return
		}
		e.Nested(unix.NFTA_CHAIN_HOOK, func(h *netlink.AttributeEncoder) error {
			h.Uint32(unix.NFTA_HOOK_HOOKNUM, uint32(*d.Hooknum))
			h.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(*d.Priority))
			return nil
		})
		if d.Policy != nil {
			e.Uint32(unix.NFTA_CHAIN_POLICY, uint32(*d.Policy))
		}
		e.String(unix.NFTA_CHAIN_TYPE, string(d.Type))
	})
}

// deleteChain deletes a chain without a hook and the rules in it.
func (b *batch) deleteChain(name string) {
	b.flushChain(name)
	b.add(unix.NFT_MSG_DELCHAIN, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_CHAIN_TABLE, tableName)
		e.String(unix.NFTA_CHAIN_NAME, name)
	})
}

// flushChain deletes the rules of a chain.
func (b *batch) flushChain(name string) { b.deleteRule(name, 0) }

// deleteRule deletes a rule of a chain, or all of them if the number is 0.
func (b *batch) deleteRule(chain string, number uint64) {
	b.add(unix.NFT_MSG_DELRULE, 0, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, tableName)
		e.String(unix.NFTA_RULE_CHAIN, chain)
		if number != 0 {
			e.Uint64(unix.NFTA_RULE_HANDLE, number)
		}
	})
}

// newRule adds a rule before the one with the number, or at the end of the chain if that is 0.
func (b *batch) newRule(chain string, r *rule, before uint64) {
	flags := netlink.Create
	if before == 0 {
		flags |= netlink.Append
	}
	for _, x := range r.exprs {
		if s, ok := x.(*inSet); ok {
			b.newSet(s)
		}
	}
	b.add(unix.NFT_MSG_NEWRULE, flags, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_RULE_TABLE, tableName)
		e.String(unix.NFTA_RULE_CHAIN, chain)
		e.Nested(unix.NFTA_RULE_EXPRESSIONS, func(list *netlink.AttributeEncoder) error {
			for _, x := range r.exprs {
				data, err := expr.Marshal(unix.NFPROTO_INET, x)
				if err != nil {
					return err
				}
				list.Bytes(unix.NLA_F_NESTED|unix.NFTA_LIST_ELEM, data)
			}
			return nil
		})
		if len(r.data) > 0 {
			e.Bytes(unix.NFTA_RULE_USERDATA, r.data)
		}
		if before != 0 {
			e.Uint64(unix.NFTA_RULE_POSITION, before)
		}
	})
}

// newSet adds the anonymous set of a look-up, for the rule that is added next.
func (b *batch) newSet(s *inSet) {
	const name = "__set%d" // which the kernel makes a name of (nf_tables_set_alloc_name)
	b.sets++
	s.SetName, s.SetID = name, b.sets
	flags := uint32(unix.NFT_SET_ANONYMOUS | unix.NFT_SET_CONSTANT)
	if !s.single() {
		flags |= unix.NFT_SET_INTERVAL
	}
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_SET_TABLE, tableName)
		e.String(unix.NFTA_SET_NAME, name)
		e.Uint32(unix.NFTA_SET_FLAGS, flags)
		e.Uint32(unix.NFTA_SET_KEY_TYPE, s.kind.number)
		e.Uint32(unix.NFTA_SET_KEY_LEN, s.kind.length)
		e.Uint32(unix.NFTA_SET_ID, s.SetID)
		e.Nested(unix.NFTA_SET_DESC, func(d *netlink.AttributeEncoder) error {
			d.Uint32(unix.NFTA_SET_DESC_SIZE, uint32(2*len(s.ranges)))
			return nil
		})
	})
	b.add(unix.NFT_MSG_NEWSETELEM, netlink.Create, func(e *netlink.AttributeEncoder) {
		e.String(unix.NFTA_SET_ELEM_LIST_TABLE, tableName)
		e.String(unix.NFTA_SET_ELEM_LIST_SET, name)
		e.Uint32(unix.NFTA_SET_ELEM_LIST_SET_ID, s.SetID)
		e.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list *netlink.AttributeEncoder) error {
			element := func(key []byte, flags uint32) {
				list.Nested(unix.NFTA_LIST_ELEM, func(m *netlink.AttributeEncoder) error {
					m.Nested(unix.NFTA_SET_ELEM_KEY, func(k *netlink.AttributeEncoder) error {
						k.Bytes(unix.NFTA_DATA_VALUE, key)
						return nil
					})
					if flags != 0 {
						m.Uint32(unix.NFTA_SET_ELEM_FLAGS, flags)
					}
					return nil
				})
			}
			for _, r := range s.ranges {
				element(s.kind.bytes(r.First), 0)
				if last := s.kind.bytes(r.Last); flags&unix.NFT_SET_INTERVAL != 0 && !bytes.Equal(last, s.kind.last()) {
					element(next(last, 1), unix.NFT_SET_ELEM_INTERVAL_END)
				}
			}
			return nil
		})
	})
}

// newCounter adds a counter, which may exist.
func (b *batch) newCounter(name string) {
	b.add(unix.NFT_MSG_NEWOBJ, netlink.Create, func(e *netlink.AttributeEncoder) {
		counterAttributes(name)(e)
		e.Nested(unix.NFTA_OBJ_DATA, func(d *netlink.AttributeEncoder) error {
			d.Uint64(unix.NFTA_COUNTER_BYTES, 0)
			d.Uint64(unix.NFTA_COUNTER_PACKETS, 0)
			return nil
		})
	})
}

func (b *batch) deleteCounter(name string) { b.add(unix.NFT_MSG_DELOBJ, 0, counterAttributes(name)) }

// errChanged means that others have changed rules of the namespace since the generation that a batch builds on.
var errChanged = errors.New("other rules have been changed meanwhile")

// commit carries out a batch if the rules are still those of the generation, and fails with errChanged otherwise.
func (c *conn) commit(b *batch, generation uint32) error {
	if b.err != nil || len(b.messages) == 0 {
		return b.err
	}
	// One answer is asked for, to the last command: one for each could overflow the receive buffer. A command that
	// fails answers in any case, and first.
	b.messages[len(b.messages)-1].Header.Flags |= netlink.Acknowledge
	c.committed = true
	if err := c.send(frame(b.messages, generation)...); err != nil {
		return err
	}
	answers, err := c.receive()
	if err == nil {
		_, err = take(&answers, func(nfnl.AttrIter) {})
	}
	if errors.Is(err, unix.ERESTART) {
		return errChanged
	}
	return err
}

// frame puts messages between the marks of a batch. The resource id, in network order, names the subsystem.
func frame(messages []netlink.Message, generation uint32) []netlink.Message {
	mark := func(kind uint16, more ...byte) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
			Data:   append([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}, more...),
		}
	}
	framed := make([]netlink.Message, 0, len(messages)+2)
	framed = append(framed, mark(unix.NFNL_MSG_BATCH_BEGIN, nfnl.AppendAttr32(nil, unix.NFNL_BATCH_GENID, generation)...))
	framed = append(framed, messages...)
	return append(framed, mark(unix.NFNL_MSG_BATCH_END))
}
