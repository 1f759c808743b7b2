//go:build linux

package shell

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// jobVariable makes a new process of the test binary a command in the lab.
const jobVariable = "DIVERT_SHELL_TEST_JOB"

var jobs = map[string]func() error{"talk": talk, "hold": hold}

func TestMain(m *testing.M) {
	if job := jobs[os.Getenv(jobVariable)]; job != nil {
		if err := job(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(7)
	}
	lab.Main(m)
}

// talk sends a request to every server of the peer, over both families, and prints the answers.
func talk() error {
	for _, host := range []string{"10.77.2.2", "fd77:2::2"} {
		for _, network := range []string{"udp", "tcp"} {
			if err := echo(network, net.JoinHostPort(host, "7")); err != nil {
				return err
			}
		}
		r, err := http.Get("http://" + net.JoinHostPort(host, "80") + "/x")
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, r.Body)
		r.Body.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func echo(network, addr string) error {
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b := []byte("echo")
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != "echo" {
		return errors.New("the echo is another")
	}
	return nil
}

func TestRun(t *testing.T) {
	lab.Need(t)
	lab.CheckLeaks(t)
	t.Setenv(jobVariable, "talk")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rows := []struct{ at, from4, from6 string }{
		{"", "10.77.1.2", "fd77:1::2"},
		{"host", "10.77.1.2", "fd77:1::2"},
		{"router", "10.77.2.1", "fd77:2::1"},
		{"peer", "10.77.2.2", "fd77:2::2"},
	}
	for _, row := range rows {
		t.Run(row.at, func(t *testing.T) {
			var out, errout bytes.Buffer
			status, err := Run(t.Context(), Options{Command: []string{self}, At: row.at, Out: &out, Err: &errout})
			if err != nil || status != 7 {
				t.Fatalf("status %d, error %v, want 7 and none\n%s%s", status, err, &out, &errout)
			}
			for _, from := range []string{row.from4, row.from6} {
				if want := "Hello " + from + ", this is the web server of the lab. You asked for /x.\n"; !strings.Contains(out.String(), want) {
					t.Errorf("the page does not say %q:\n%s", want, &out)
				}
			}
			if !strings.Contains(errout.String(), "<- you are here") {
				t.Errorf("the messages do not name the place of the command:\n%s", &errout)
			}
		})
	}
}

func TestStatusOfCommands(t *testing.T) {
	lab.Need(t)
	rows := []struct {
		name   string
		script string
		status int
	}{
		{"success", "exit 0", 0},
		{"failure", "exit 3", 3},
		{"killed", "kill -9 $$", 137},
		{"input", "read line; exit $line", 5},
	}
	for _, row := range rows {
		status, err := Run(t.Context(), Options{Command: []string{"/bin/sh", "-c", row.script}, In: strings.NewReader("5\n"), Out: io.Discard, Err: io.Discard})
		if err != nil || status != row.status {
			t.Errorf("%s: status %d, error %v, want %d", row.name, status, err, row.status)
		}
	}
	if _, err := Run(t.Context(), Options{Command: []string{"/no/such/command"}, Err: io.Discard}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a command that is not there: %v, want %v", err, os.ErrNotExist)
	}
	if _, err := Run(t.Context(), Options{At: "moon", Err: io.Discard}); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("a place that is not there: %v, want %v", err, os.ErrInvalid)
	}
}
