package windows

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// request is a call of a handle that makes one request of the driver.
type request struct {
	name string
	code uint32
	call func(*client) error
}

// requests are the calls of an open handle.
var requests = []request{
	{"receive", codeRecv, func(h *client) error {
		_, err := h.Recv(make([]packet.Packet, 2))
		return err
	}},
	{"send", codeSend, func(h *client) error {
		_, err := h.Send([]packet.Packet{numbered(2, 10)})
		return err
	}},
	{"set a parameter", codeSetParam, func(h *client) error {
		return h.SetLimits(engine.Limits{Length: 100, Time: defaults.Time, Size: defaults.Size})
	}},
	{"get a parameter", codeGetParam, func(h *client) error {
		_, err := h.newest.Load().driver.getParam(paramQueueLength)
		return err
	}},
	{"shut down", codeShutdown, func(h *client) error { return h.Shutdown(engine.ShutdownSend) }},
}

// opening are the requests of Open.
var opening = []request{{"begin", codeInitialize, nil}, {"start", codeStartup, nil}}

// run runs a call in the background.
func (r request) run(h *client) chan error {
	done := make(chan error, 1)
	go func() { done <- r.call(h) }()
	return done
}

// TestSlowDriver makes the driver slow for each request: the call waits, and works.
func TestSlowDriver(t *testing.T) {
	f := load(t)
	for _, r := range requests {
		t.Run(r.name, func(t *testing.T) {
			h := network(t, "true")
			f.hold(r.code, 1)
			done := r.run(h)
			f.eventually("the request is held", func(c census) bool { return c.held == 1 })
			f.queue(numbered(4, 4))
			select {
			case err := <-done:
				t.Errorf("the call does not wait: %v", err)
			default:
				f.release()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			h.Close()
		})
	}
	for _, r := range opening {
		t.Run(r.name, func(t *testing.T) {
			f.hold(r.code, 1)
			done := make(chan error, 1)
			go func() {
				h, err := Open(config(t, "true", packet.LayerNetwork, 0))
				if err == nil {
					h.Close()
				}
				done <- err
			}()
			f.eventually("the request is held", func(c census) bool { return c.held == 1 })
			f.release()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	f.eventually("all are closed", func(c census) bool { return c.contexts == 0 && c.held == 0 })
}

// TestCloseEndsSlowRequests closes a handle while the driver has a request: the call ends, and so does Close.
func TestCloseEndsSlowRequests(t *testing.T) {
	f := load(t)
	for _, r := range requests {
		if r.code == codeSetParam || r.code == codeShutdown {
			continue // calls that change a handle, Close included, run one after the other
		}
		t.Run(r.name, func(t *testing.T) {
			h := network(t, "true")
			f.hold(r.code, 1)
			done := r.run(h)
			f.eventually("the request is held", func(c census) bool { return c.held == 1 })
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("the call: %v", err)
			}
		})
	}
	f.eventually("all are closed", func(c census) bool { return c.contexts == 0 && c.held == 0 })
}

// TestCancelledFromOutside makes the system cancel requests, as it does when their thread ends. A receive call goes on,
// others fail.
func TestCancelledFromOutside(t *testing.T) {
	f := load(t)
	for _, r := range requests {
		t.Run(r.name, func(t *testing.T) {
			h := network(t, "true")
			f.fail(r.code, statusCancelled, 0, 1)
			done := r.run(h)
			if r.code == codeRecv {
				f.eventually("the call receives again", func(c census) bool { return c.pending == 1 })
				f.queue(numbered(2, 2))
				if err := <-done; err != nil {
					t.Error(err)
				}
				return
			}
			if err := <-done; numberOf(err) != errnoAborted {
				t.Errorf("error %v", err)
			}
			if err := r.call(h); err != nil {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}

// TestFailsAtEachPoint makes each request fail before the driver has carried it out, and after.
func TestFailsAtEachPoint(t *testing.T) {
	f := load(t)
	for name, how := range map[string]uint32{"before": instead, "after": after} {
		for _, r := range requests {
			t.Run(name+"/"+r.name, func(t *testing.T) {
				if r.code == codeRecv && how == after {
					t.Skip("what is received is received")
				}
				h := network(t, "true")
				f.failAt(how, 0, r.code, statusInsufficientResources, 0, 1)
				if err := r.call(h); numberOf(err) != errnoNoResources {
					t.Errorf("error %v", err)
				}
				f.queue(numbered(4, 4))
				if err := r.call(h); err != nil {
					t.Errorf("the next call: %v", err)
				}
				if err := h.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		for _, r := range opening {
			t.Run(name+"/"+r.name, func(t *testing.T) {
				f.failAt(how, 0, r.code, statusInsufficientResources, 0, 1)
				if _, err := Open(config(t, "true", packet.LayerNetwork, 0)); numberOf(err) != errnoNoResources {
					t.Errorf("error %v", err)
				}
			})
		}
	}
	f.eventually("all are closed", func(c census) bool { return c.contexts == 0 })
}

// TestRequestsWithinTheCall makes requests complete at once, which the real driver never does.
func TestRequestsWithinTheCall(t *testing.T) {
	f := load(t)
	f.mode(modeAtOnce)
	h := network(t, "true")
	f.queue(numbered(4, 4))
	for _, r := range requests {
		if err := r.call(h); err != nil {
			t.Errorf("%s: %v", r.name, err)
		}
		f.fail(r.code, statusInsufficientResources, 0, 1)
		if err := r.call(h); r.code != codeSetParam && numberOf(err) != errnoNoResources { // the value is set already then
			t.Errorf("%s: error %v", r.name, err)
		}
	}
	if err := h.Shutdown(engine.ShutdownRecv); err != nil {
		t.Error(err)
	}
	if _, err := h.Recv(make([]packet.Packet, 1)); err != io.EOF {
		t.Error(err)
	}
}

// TestDeadlineEndsSlowReceive: a deadline passes while the driver has a receive call that it does not even queue.
func TestDeadlineEndsSlowReceive(t *testing.T) {
	f := load(t)
	h := network(t, "true")
	f.hold(codeRecv, 1)
	done := requests[0].run(h)
	f.eventually("the request is held", func(c census) bool { return c.held == 1 })
	h.SetReadDeadline(time.Unix(1, 0))
	if err := <-done; err == nil {
		t.Error("it received something")
	}
	h.SetReadDeadline(time.Time{})
	f.queue(numbered(4, 4))
	if err := requests[0].call(h); err != nil {
		t.Error(err)
	}
}
