//go:build linux

package probe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/detour"
	"github.com/opendivert/divert/internal/linux/eventprog"
	"github.com/opendivert/divert/internal/linux/inject"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/nflog"
	"github.com/opendivert/divert/internal/linux/processes"
	"github.com/opendivert/divert/internal/linux/queue"
)

const (
	noHandles = "no handle can be opened"
	noEBPF    = "the interpreter decides: same answers, but every packet comes to user space"
	runAsRoot = "run as root, or give the program the capability: setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon,cap_dac_read_search+ep FILE"
)

// since names a version of Linux.
func since(major, minor int) Version { return Version{Major: major, Minor: minor} }

// The rights of the caller.
var (
	capNetAdmin = &Feature{
		Name: "CAP_NET_ADMIN", For: "rules and queues", Without: noHandles, Remedy: runAsRoot,
		test: capability(unix.CAP_NET_ADMIN),
	}
	capNetRaw = &Feature{
		Name: "CAP_NET_RAW", For: "injecting packets", Without: "new packets cannot be injected", Remedy: runAsRoot,
		test: capability(unix.CAP_NET_RAW),
	}
	capBPF = &Feature{
		Name: "CAP_BPF", For: "loading filter programs (before 5.8: CAP_SYS_ADMIN)", Without: noEBPF, Remedy: runAsRoot,
		test: capabilityOrAdmin(unix.CAP_BPF),
	}
	capPerfmon = &Feature{
		Name: "CAP_PERFMON", For: "sniffing through shared memory, processes of packets (before 5.8: CAP_SYS_ADMIN)",
		Without: "handles that sniff get their copies through the packet log, which takes longer, and processId is not known at the layer network", Remedy: runAsRoot,
		test: capabilityOrAdmin(unix.CAP_PERFMON),
	}
	capRead = &Feature{
		Name: "CAP_DAC_READ_SEARCH", For: "reading the counters of queues, which belong to root",
		Without: "only handles that sniff or drop can be opened", Remedy: runAsRoot,
		test: func(p *Prober) error {
			if p.caller.UID == 0 || capability(unix.CAP_DAC_OVERRIDE)(p) == nil {
				return nil
			}
			return capability(unix.CAP_DAC_READ_SEARCH)(p)
		},
	}
	capSysAdmin = &Feature{
		Name: "CAP_SYS_ADMIN", For: "network namespaces without a user namespace",
		Without: "tests, demo and lab work in a user namespace, with the interpreter", Remedy: "run as root",
		test: capability(unix.CAP_SYS_ADMIN),
	}
)

// filterPrograms is the feature that decides between the engines.
var filterPrograms = &Feature{
	Name: "eBPF filter programs", Since: since(5, 8), For: "filters of up to 7,000 tests (a set is one) decided in the kernel", Without: noEBPF,
	Remedy: "run as root outside user namespaces; a container needs --cap-add BPF, and a seccomp profile that allows bpf(2)",
	test:   loadable,
}

// Features are all features that are probed, the most basic first.
var Features = []*Feature{
	capNetAdmin, capNetRaw, capRead, capBPF, capPerfmon, capSysAdmin,
	{
		Name: "network namespaces", Since: since(3, 8), For: "tests, demo, lab and this probe",
		Without: "none of them works, and the rest of this list is not tried", Remedy: "run as root, or allow user namespaces",
		test: func(p *Prober) error { return p.noHost },
	},
	{
		Name: "user namespaces", Since: since(3, 8), For: "tests, demo and lab as an ordinary user",
		Without: "they need root",
		Remedy:  "sysctl user.max_user_namespaces=10000; older Debian: kernel.unprivileged_userns_clone=1; Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0",
		test:    userNamespaces,
	},
	{
		Name: "nf_tables, family inet", Since: since(3, 14), For: "the table of rules", Without: noHandles,
		Remedy: "modprobe nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)",
		test:   rule(),
	},
	{
		Name: "nft_compat with NFQUEUE", Since: since(3, 13), For: "rules that lead packets to a queue", Without: noHandles,
		Remedy: "modprobe nft_compat xt_NFQUEUE (CONFIG_NFT_COMPAT, CONFIG_NETFILTER_XT_TARGET_NFQUEUE)",
		test:   rule(toQueue(0xffff)),
	},
	{
		Name: "packet queue with GSO", Since: since(3, 10), For: "packets on their way to the program and back", Without: noHandles,
		Remedy: "modprobe nfnetlink_queue (CONFIG_NETFILTER_NETLINK_QUEUE)",
		test:   inside(bindQueue),
	},
	of(kernel.VerdictPriority, verdictPriority),
	of(kernel.FinishedSCTP, nil),
	{
		Name: "nft log and packet log", Since: since(3, 13), For: "handles that sniff", Without: "handles with Sniff do not open",
		Remedy: "modprobe nft_log nfnetlink_log (CONFIG_NFT_LOG, CONFIG_NETFILTER_NETLINK_LOG)",
		test:   inside(packetLog),
	},
	{
		Name: "nft fib", Since: since(4, 10), For: "telling packets for this host from those routed through it", Without: noHandles,
		Remedy: "modprobe nft_fib_inet (CONFIG_NFT_FIB_INET)",
		test:   rule(&expr.Fib{Register: unix.NFT_REG_1, FlagDADDR: true, ResultADDRTYPE: true}),
	},
	{
		Name: "nft tproxy", Since: since(4, 19), For: "putting fragments together", Without: noHandles,
		Remedy: "modprobe nft_tproxy (CONFIG_NFT_TPROXY)",
		test:   rule(tproxy()...),
	},
	{
		Name: "nft counters with names", Since: since(4, 10), For: "counting what matched", Without: noHandles,
		Remedy: "modprobe nft_objref (before 5.0: CONFIG_NFT_COUNTER, CONFIG_NFT_OBJREF)",
		test:   inside(namedCounter),
	},
	filterPrograms,
	of(codegen.Loops, loopable),
	of(kernel.CoarseClock, nil),
	{
		Name: "xt_bpf by descriptor", Since: since(4, 10), For: "filter programs in rules", Without: "no handle opens unless it asks for the interpreter",
		Remedy: "modprobe xt_bpf (CONFIG_NETFILTER_XT_MATCH_BPF)",
		test:   programInRule,
	},
	{
		Name: "raw sockets", Since: since(4, 5), For: "injecting outbound packets", Without: "new outbound packets cannot be injected",
		Remedy: "run as root",
		test:   inside(rawSockets),
	},
	{
		Name: "/dev/net/tun", Since: since(2, 6), For: "injecting inbound packets", Without: "new inbound packets cannot be injected (received ones can be sent on)",
		Remedy: "modprobe tun; a container needs --device /dev/net/tun; an ordinary user needs read and write access to it",
		test:   tunDevice,
	},
	{
		Name: "tc ingress with mirred", Since: since(4, 10), For: "injecting inbound packets", Without: "new inbound packets cannot be injected (received ones can be sent on)",
		Remedy: "modprobe sch_ingress cls_u32 act_mirred (CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED)",
		test:   redirect,
	},
	of(eventprog.OnCgroups, nil),
	of(cgprog.SockOpsProcess, nil),
	of(cgprog.SockOpsName, nil),
	of(cgprog.SkbNamespace, nil),
	of(cgroup.Order, nil),
	of(eventprog.RefuseListen, nil),
	of(processes.OfPackets, nil),
	of(detour.Connects, nil),
}

// of makes a Feature of one that the engine uses. It is tried as the engine tries it, in the namespace of the prober, unless
// there is a test that shows more.
func of(k *kernel.Feature, test func(*Prober) error) *Feature {
	if test == nil {
		test = inside(k.Err)
	}
	return &Feature{Name: k.Name, Since: k.Since, For: k.For, Without: k.Without, Remedy: k.Remedy, test: test}
}

// inside makes a test of a function that works in the calling thread's namespace.
func inside(f func() error) func(*Prober) error {
	return func(p *Prober) error { return p.inside(f) }
}

// errNoRight means that the caller lacks a capability.
var errNoRight = errors.New("the process does not have it")

// capability tests for a right of the caller.
func capability(number int) func(*Prober) error {
	return func(p *Prober) error {
		if p.caller.Capabilities&(1<<number) == 0 {
			return errNoRight
		}
		return nil
	}
}

// capabilityOrAdmin tests a capability that was a part of CAP_SYS_ADMIN before Linux 5.8.
func capabilityOrAdmin(number int) func(*Prober) error {
	return func(p *Prober) error {
		if p.kernel.Before(since(5, 8)) {
			return capability(unix.CAP_SYS_ADMIN)(p)
		}
		return capability(number)(p)
	}
}

// userNamespaces tests whether ordinary users may make user namespaces.
func userNamespaces(p *Prober) error {
	if p.caller.Rootless {
		return nil // this process is in one
	}
	for _, s := range []struct{ file, forbids string }{
		{"kernel/unprivileged_userns_clone", "0"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1"},
	} {
		if b, err := os.ReadFile("/proc/sys/" + s.file); err == nil && strings.TrimSpace(string(b)) == s.forbids {
			return fmt.Errorf("forbidden to ordinary users by %s = %s", strings.ReplaceAll(s.file, "/", "."), s.forbids)
		}
	}
	return cloneUser()
}

// cloneUser starts a process in a new user namespace with a program that does not exist: the start gets as far as that.
func cloneUser() error {
	cmd := &exec.Cmd{Path: "/proc/self/no such program", SysProcAttr: &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}}
	err := cmd.Start()
	if err == nil {
		return errors.Join(errors.New("a process without a program has started"), cmd.Process.Kill(), cmd.Wait())
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		return fmt.Errorf("no more are allowed: %w", err)
	}
	return err
}

// loadable tests whether the caller may load programs.
func loadable(p *Prober) error {
	if p.caller.Programs != "" {
		return errors.New(p.caller.Programs)
	}
	return nil
}

// loopable tests whether the programs that the caller may load can walk over headers without a bound.
func loopable(p *Prober) error {
	if err := loadable(p); err != nil {
		return err
	}
	if p.caller.Loops != "" {
		return errors.New(p.caller.Loops)
	}
	return nil
}

// loadProgram loads a program like those of handles, for as long as f runs.
func loadProgram(f func(fd int) error) error {
	loaded, err := codegen.LoadSmall()
	if err != nil {
		return err
	}
	return errors.Join(f(loaded.FD()), loaded.Close())
}

// programInRule tests a rule that asks a program.
func programInRule(p *Prober) error {
	return p.inside(func() error {
		tried := false
		err := loadProgram(func(fd int) error {
			tried = true
			return enter(askProgram(fd))
		})
		if !tried {
			return fmt.Errorf("%w: there is no program to try it with", ErrNotTried)
		}
		return err
	})
}

// bindQueue binds a queue with the options that handles use.
func bindQueue() error {
	q, err := queue.Open(queue.Options{MaxLen: 1, RcvBuf: 1 << 16})
	if err != nil {
		return err
	}
	return q.Close()
}

// packetLog binds a log group and enters a rule that logs to it.
func packetLog() error {
	l, err := nflog.Open(1<<16, 0)
	if err != nil {
		return err
	}
	err = enter(&expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_QTHRESHOLD,
		Group: l.Group(), QThreshold: nflog.Threshold,
	})
	return errors.Join(err, l.Close())
}

// tproxy is the expression that switches reassembly on.
func tproxy() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Immediate{Register: unix.NFT_REG_1, Data: binaryutil.BigEndian.PutUint16(1)},
		&expr.TProxy{Family: unix.NFPROTO_IPV4, TableFamily: unix.NFPROTO_INET, RegPort: unix.NFT_REG_1},
	}
}

// rawSockets opens the sockets of outbound injection.
func rawSockets() error {
	o, err := inject.NewOutbound(inject.NewPassword())
	if err != nil {
		return err
	}
	return o.Close()
}

// tunDevice makes a device.
func tunDevice(p *Prober) error {
	if p.host == nil {
		return p.inside(nil)
	}
	t, err := p.host.AddTUN("probe0")
	if err != nil {
		return err
	}
	return t.Close()
}
