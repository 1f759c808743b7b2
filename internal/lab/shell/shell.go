//go:build linux

package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

// Ports of the peer's servers.
const (
	portEcho = 7
	portWeb  = 80
)

// Run builds the network, runs the command in it, removes the network and returns the command's exit status, or 128
// plus the number of the signal that ended it. When ctx ends the command gets a SIGTERM. As an ordinary user Run starts
// the program again in a user namespace, as lab.Rootless does. Where network namespaces are unavailable, the error
// wraps lab.ErrUnavailable.
func Run(ctx context.Context, o Options) (status int, err error) {
	if err := lab.Rootless(); err != nil {
		return 0, err
	}
	n, err := lab.HostRouterPeer(lab.LinkOptions{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	servers, err := serve(n.B)
	defer func() { err = errors.Join(err, closeAll(servers)) }()
	if err != nil {
		return 0, err
	}
	at, err := place(n, o.At)
	if err != nil {
		return 0, err
	}
	if o.Divert != "" {
		dir, err := newBinDir(o.Divert)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, dir.remove()) }()
		o.path = dir.path
	}
	describe(o.Err, n, at)
	return run(ctx, at, o)
}

// place returns the host with a name of Places.
func place(n *lab.Routed, name string) (*lab.Host, error) {
	for i, h := range []*lab.Host{n.A, n.R, n.B} {
		if Places[i] == name || i == 0 && name == "" {
			return h, nil
		}
	}
	return nil, fmt.Errorf("there is no %q in the lab, but %s: %w", name, strings.Join(Places, ", "), os.ErrInvalid)
}

// describe prints the hosts and servers.
func describe(w io.Writer, n *lab.Routed, at *lab.Host) {
	here := func(h *lab.Host) string {
		if h == at {
			return "  <- you are here"
		}
		return ""
	}
	fmt.Fprintf(w, "A network of its own: no link leads out of it. It is no jail: files and processes are those of this\nmachine, and a program of root's can leave it.\n\n")
	fmt.Fprintf(w, "  host    %v %v%s\n", n.A.Addr4(), n.A.Addr6(), here(n.A))
	fmt.Fprintf(w, "    |     %s\n", n.LinkA.Name())
	fmt.Fprintf(w, "  router  %v %v%s\n", n.LinkRA.Addrs()[0].Addr(), n.LinkRA.Addrs()[1].Addr(), here(n.R))
	fmt.Fprintf(w, "    |     %v %v\n", n.LinkRB.Addrs()[0].Addr(), n.LinkRB.Addrs()[1].Addr())
	fmt.Fprintf(w, "  peer    %v %v%s\n", n.B.Addr4(), n.B.Addr6(), here(n.B))
	fmt.Fprintf(w, "          web server at port %d, echo over UDP and TCP at port %d\n\n", portWeb, portEcho)
}

// serve starts the servers of the peer.
func serve(h *lab.Host) (servers []io.Closer, err error) {
	for _, network := range []string{"udp", "tcp"} {
		e, err := h.Echo(network, fmt.Sprintf(":%d", portEcho))
		if err != nil {
			return servers, err
		}
		servers = append(servers, e)
	}
	l, err := h.Listen("tcp", fmt.Sprintf(":%d", portWeb))
	if err != nil {
		return servers, err
	}
	w := &http.Server{Handler: http.HandlerFunc(answer), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.Serve(l) // its error only says that the server was closed
	}()
	return append(servers, closer(func() error {
		err := w.Close()
		<-done
		return err
	})), nil
}

// answer serves a page with the client's address and the requested path.
func answer(w http.ResponseWriter, r *http.Request) {
	from, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		from = r.RemoteAddr
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "Hello %s, this is the web server of the lab. You asked for %s.\n", from, r.URL.Path)
}

// closer makes a function an io.Closer.
type closer func() error

// Close calls the function.
func (c closer) Close() error { return c() }

func closeAll(cs []io.Closer) (err error) {
	for _, c := range cs {
		err = errors.Join(err, c.Close())
	}
	return err
}

// command returns the command, which searches the directory path for programs first.
func (o *Options) command() *exec.Cmd {
	args := o.Command
	if len(args) == 0 {
		args = []string{userShell()}
	}
	name := args[0]
	if o.path != "" && name == "divert" {
		name = filepath.Join(o.path, name)
	}
	cmd := exec.Command(name, args[1:]...)
	cmd.Args[0] = args[0]
	if o.path != "" {
		cmd.Env = append(os.Environ(), "PATH="+o.path+string(filepath.ListSeparator)+os.Getenv("PATH"))
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.In, o.Out, o.Err
	return cmd
}

// run runs the command on a host.
func run(ctx context.Context, at *lab.Host, o Options) (int, error) {
	cmd := o.command()
	// A terminal sends these to the command as well, which decides what they mean.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT)
	defer signal.Stop(signals)
	if err := at.Start(cmd); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) }) // fails only if it has ended
	defer stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, err
	}
	if w, ok := exit.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal()), nil
	}
	return exit.ExitCode(), nil
}

// userShell returns the shell of the environment, or the one present on every system.
func userShell() string {
	if s := os.Getenv("SHELL"); s != "" {
		return s
	}
	return "/bin/sh"
}
