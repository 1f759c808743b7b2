package main

import (
	"context"
	"io"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/capfile"
)

// captureReader reads the IP packets of a capture file as records.
type captureReader struct {
	*capfile.Reader
	packet capfile.Packet
}

// newCaptureReader begins to read a file and gives its packets addresses of the layer.
func newCaptureReader(in io.Reader, layer divert.Layer) (*captureReader, error) {
	r, err := capfile.NewReader(in, layer)
	if err != nil {
		return nil, err
	}
	return &captureReader{Reader: r}, nil
}

// next reads the next IP packet into r, which is valid until the following call. It returns io.EOF at the end.
func (c *captureReader) next(r *record) error {
	p := &c.packet
	if err := c.Next(p); err != nil {
		return err
	}
	r.data, r.length, r.when, r.addr, r.live = p.Data, p.Length, p.Time, &p.Addr, false
	r.device, r.direction = p.Device, directionsOfFiles[p.Direction]
	r.pid, r.program, r.path, r.verdict, r.lost = p.PID, p.Program, p.Path, p.Verdict, p.Lost
	return nil
}

// directionsOfFiles are the directions that capture files record.
var directionsOfFiles = [...]direction{
	capfile.Unknown: directionUnknown, capfile.In: directionIn, capfile.Out: directionOut,
}

// interruptible is a reader whose Read returns when its context ends, even if the reader beneath waits.
type interruptible struct {
	ctx  context.Context
	r    io.Reader
	buf  []byte // holds the bytes read; not the caller's memory, which an abandoned Read must not write to
	rest []byte // the part of buf still to be returned
	err  error  // the error that follows the bytes
}

// Read implements io.Reader.
func (i *interruptible) Read(b []byte) (int, error) {
	if len(i.rest) == 0 && i.err == nil {
		i.fill(len(b))
	}
	n := copy(b, i.rest)
	i.rest = i.rest[n:]
	if len(i.rest) > 0 {
		return n, nil
	}
	return n, i.err
}

// fill reads once from the reader beneath, which is not used again once the context has ended.
func (i *interruptible) fill(n int) {
	if len(i.buf) < n {
		i.buf = make([]byte, n)
	}
	type result struct {
		n   int
		err error
	}
	read := make(chan result, 1)
	go func() {
		n, err := i.r.Read(i.buf)
		read <- result{n, err}
	}()
	select {
	case r := <-read:
		i.rest, i.err = i.buf[:r.n], r.err
	case <-i.ctx.Done():
		i.err = i.ctx.Err()
	}
}
