// Package nodetest gives a test its own node: a process in new network, mount and PID namespaces, with an empty /run
// and /var/lib. When the process ends, the kernel removes everything in these namespaces.
package nodetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const inside = "WEIR_NODETEST"

// Self is the path of the node's own network namespace.
const Self = "/run/node.netns"

// Isolated runs the calling test once more on its own node, and returns false. On that node, it returns true:
//
//	func TestX(t *testing.T) {
//	  if !nodetest.Isolated(t) {
//	    return
//	  }
//
// If the machine can't make such a node, the test fails. Isolated never skips the test.
func Isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		setUp(t)
		return true
	}
	t.Parallel()
	args := []string{"-test.run=^" + regexp.QuoteMeta(t.Name()) + "$", "-test.v", "-test.count=1"}
	for _, a := range os.Args[1:] {
		if !strings.HasPrefix(a, "-test.") || strings.HasPrefix(a, "-test.short") {
			args = append(args, a)
		}
	}
	// The inner process must time out first, because its output shows where it hangs.
	if deadline, ok := t.Deadline(); ok {
		args = append(args, fmt.Sprint("-test.timeout=", max(time.Until(deadline)*9/10, time.Second)))
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	// os.Getenv reads the variable in this process, so that go test reuses no cached result of another backend.
	cmd.Env = append(os.Environ(), inside+"="+t.Name(), backendEnv+"="+os.Getenv(backendEnv))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	// The kernel sends Pdeathsig when the thread that started the process ends. So this thread must stay until the
	// process ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("in a node of its own: %v\n%s", err, out)
	case !bytes.Contains(out, []byte("--- PASS: "+t.Name())):
		t.Errorf("the test did not run in its node:\n%s", out)
	case testing.Verbose():
		t.Logf("%s", out)
	}
	return false
}

func setUp(t *testing.T) {
	t.Helper()
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{"none", "/", "", syscall.MS_REC | syscall.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
		{"tmpfs", "/var/lib", "tmpfs", 0}, // here, CNI plugins keep state that outlives a reboot
	} {
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			t.Fatalf("mount %s: %v", m.target, err)
		}
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		t.Fatal(err)
	}
	// Self always leads to the node's own network namespace. /proc/self doesn't, because these tests' threads change
	// their namespaces.
	if err := os.WriteFile(Self, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("/proc/thread-self/ns/net", Self, "", syscall.MS_BIND, ""); err != nil {
		t.Fatalf("keep the node's network namespace: %v", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("set lo up: %v", err)
	}
}

// NewNS makes a named network namespace, and returns its path.
//
// Equivalent to: ip netns add NAME
func NewNS(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join("/run/netns", name)
	// The thread must return to its own namespace. Go never ends the first thread of a process: if this thread is the
	// first one, it would keep the new namespace in use.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatalf("open the thread's network namespace: %v", err)
	}
	defer func() { _ = own.Close() }()
	fd, err := netns.New()
	if err != nil {
		t.Fatalf("make network namespace %s: %v", name, err)
	}
	err = os.WriteFile(path, nil, 0o444)
	if err == nil {
		err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
	}
	if err := errors.Join(err, netns.Set(own), fd.Close()); err != nil {
		t.Fatalf("keep network namespace %s: %v", name, err)
	}
	return path
}

// DelNS removes the namespace's name. The namespace itself ends with its last thread and socket.
func DelNS(t testing.TB, path string) {
	t.Helper()
	if err := errors.Join(unix.Unmount(path, unix.MNT_DETACH), os.Remove(path)); err != nil {
		t.Fatalf("remove network namespace %s: %v", path, err)
	}
}

// In runs f on a thread in the network namespace at the path. If f returns an error, the test fails.
func In(t testing.TB, path string, f func() error) {
	t.Helper()
	if err := ns.WithNetNSPath(path, func(ns.NetNS) error { return f() }); err != nil {
		t.Fatalf("in %s: %v", path, err)
	}
}

// Run runs a command on the node, and returns its output. If the command fails, the test ends.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := Try(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// RunEach runs the commands in order. If one fails, the test ends. It splits commands at spaces, so no argument can
// contain a space.
func RunEach(t testing.TB, commands ...string) {
	t.Helper()
	for _, c := range commands {
		f := strings.Fields(c)
		Run(t, f[0], f[1:]...)
	}
}

// Try runs a command, and returns its output. An error also contains the output.
func Try(name string, args ...string) (string, error) {
	out, err := exec.CommandContext(context.Background(), name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// Outside makes a host outside of the cluster, and returns the path of its network namespace. The host has 192.0.2.1/24
// and 2001:db8::1/64. The node's eth0 has 192.0.2.2/24 and 2001:db8::2/64, and its default routes lead to this host.
func Outside(t testing.TB) string {
	t.Helper()
	path := NewNS(t, "outside")
	RunEach(t,
		"ip link add eth0 address 02:00:00:00:00:02 type veth peer name eth0 address 02:00:00:00:00:01 netns outside",
		"ip addr add 192.0.2.2/24 dev eth0",
		"ip addr add 2001:db8::2/64 dev eth0 nodad",
		"ip link set eth0 up",
		"ip -n outside addr add 192.0.2.1/24 dev eth0",
		"ip -n outside addr add 2001:db8::1/64 dev eth0 nodad",
		"ip -n outside link set eth0 up",
		"ip -n outside link set lo up",
		"ip route add default via 192.0.2.1",
		"ip -6 route add default via 2001:db8::1",
		// On a new link, IPv6 first looks for duplicate addresses. With these entries, packets needn't wait for that.
		"ip neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
		"ip -n outside neigh add 2001:db8::2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent",
	)
	return path
}
