package nodetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Pod is a pod that cnitool has attached.
type Pod struct {
	Namespace, Name string
	Netns           string
	IP, IP6         string // the pod's address in each family, or ""
	Result          string // the plugin's result, as JSON
}

// CNI runs cnitool with the verb for the network namespace, and returns its standard output. args is the value of
// CNI_ARGS. env has additional environment variables.
func (n *Node) CNI(verb, netns, args string, env ...string) (string, error) {
	cmd := exec.Command(filepath.Join(n.Bin, "cnitool"), verb, "weir", netns)
	cmd.Env = append(append(os.Environ(), "CNI_PATH="+n.Bin, "NETCONFPATH="+n.ConfDir, "CNI_ARGS="+args), env...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), fmt.Errorf("cnitool %s: %w: %s%s", verb, err, out, exit.Stderr)
	}
	return string(out), err
}

// Args returns the CNI_ARGS that containerd passes for a pod.
func Args(namespace, name, uid string) string {
	args := fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_INFRA_CONTAINER_ID=x", namespace,
		name)
	if uid != "" {
		args += ";K8S_POD_UID=" + uid
	}
	return args
}

// AddPod attaches a pod. If the pod's network namespace doesn't exist, AddPod makes it. env has additional environment
// variables.
func (n *Node) AddPod(namespace, name string, env ...string) *Pod {
	n.Helper()
	p, err := n.TryAddPod(namespace, name, env...)
	if err != nil {
		n.Fatal(err)
	}
	return p
}

// TryAddPod attaches a pod like AddPod, but returns an error instead of ending the test.
func (n *Node) TryAddPod(namespace, name string, env ...string) (*Pod, error) {
	n.Helper()
	p := &Pod{Namespace: namespace, Name: name, Netns: filepath.Join("/run/netns", namespace+"."+name)}
	if _, err := os.Stat(p.Netns); err != nil {
		NewNS(n, namespace+"."+name)
	}
	out, err := n.CNI("add", p.Netns, Args(namespace, name, ""), env...)
	if err != nil {
		return p, err
	}
	return p, p.read(out)
}

func (p *Pod) read(out string) error {
	var result struct {
		IPs []struct{ Address string }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.IPs) == 0 {
		return fmt.Errorf("cnitool add printed %q: %w", out, err)
	}
	p.Result = out
	for _, ip := range result.IPs {
		addr, _, _ := strings.Cut(ip.Address, "/")
		if strings.Contains(addr, ":") {
			p.IP6 = addr
		} else {
			p.IP = addr
		}
	}
	return nil
}

func (n *Node) DelPod(p *Pod) {
	n.Helper()
	if _, err := n.CNI("del", p.Netns, Args(p.Namespace, p.Name, "")); err != nil {
		n.Fatal(err)
	}
	DelNS(n, p.Netns)
}

const wait = 250 * time.Millisecond

// Serve runs a server in the network namespace until the test ends. A TCP server sends "hello" and the client's
// address. TCP and UDP servers echo what they receive.
func (n *Node) Serve(netns, network, address string) {
	n.Helper()
	In(n, netns, func() error {
		if strings.HasPrefix(network, "udp") {
			conn, err := net.ListenPacket(network, address)
			if err != nil {
				return err
			}
			n.Cleanup(func() { _ = conn.Close() })
			go func() {
				buf := make([]byte, 64<<10)
				for {
					k, from, err := conn.ReadFrom(buf)
					if err != nil {
						return
					}
					_, _ = conn.WriteTo(buf[:k], from)
				}
			}()
			return nil
		}
		l, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		n.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go echo(conn)
			}
		}()
		return nil
	})
}

func echo(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
	if _, err := fmt.Fprintf(conn, "hello %s\n", host); err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		k, err := conn.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:k]); err != nil {
			return
		}
	}
}

// patience is how long Connect and Greeting wait. It is long enough for a busy machine.
const patience = 10 * time.Second

// Dial connects from the network namespace. It gives up after a quarter of a second, because dropped packets get no
// answer. On a busy machine, Dial may give up although no packet was dropped. If the kernel has opened a TCP connection
// in that time, Dial returns the connection, even if this process notices it later.
func Dial(t testing.TB, netns, network, address string) (conn net.Conn, err error) {
	t.Helper()
	var kept *os.File // the socket, which stays open when the dialer gives up
	dialer := net.Dialer{Timeout: wait, Control: func(_, _ string, socket syscall.RawConn) error {
		var dupErr error
		err := socket.Control(func(fd uintptr) {
			var again int
			if again, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); dupErr == nil {
				kept = os.NewFile(uintptr(again), address)
			}
		})
		return errors.Join(err, dupErr)
	}}
	In(t, netns, func() error {
		conn, err = dialer.Dial(network, address)
		return nil
	})
	defer func() { _ = kept.Close() }()
	if err != nil && isOpen(kept) {
		return net.FileConn(kept)
	}
	return conn, err
}

func isOpen(socket *os.File) bool {
	const established = 1 // TCP_ESTABLISHED in include/net/tcp_states.h
	info, err := unix.GetsockoptTCPInfo(int(socket.Fd()), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == established
}

// Connect connects from the network namespace. If that takes more than ten seconds, the test fails. At the end of the
// test, the connection is closed.
func Connect(t testing.TB, netns, network, address string) (conn net.Conn) {
	t.Helper()
	In(t, netns, func() (err error) {
		conn, err = net.DialTimeout(network, address, patience)
		return err
	})
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Get connects like Dial, and returns the server's greeting. The greeting has the client's address as the server sees
// it.
func Get(t testing.TB, netns, address string) (string, error) {
	t.Helper()
	conn, err := Dial(t, netns, "tcp", address)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	return greeting(conn, 2*time.Second)
}

// Greeting connects like Connect, and returns the server's greeting. If none comes, the test ends.
func Greeting(t testing.TB, netns, address string) string {
	t.Helper()
	conn := Connect(t, netns, "tcp", address)
	defer func() { _ = conn.Close() }()
	text, err := greeting(conn, patience)
	if err != nil {
		t.Fatalf("the greeting of %s: %v", address, err)
	}
	return text
}

// Answers sends a new question to a server that Serve has started, and waits for the answer to this question. Late
// answers to earlier questions are ignored. If the answer doesn't come within the given time, Answers returns an
// error.
func Answers(conn net.Conn, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	question := fmt.Sprintf("<%016x>", rand.Uint64())
	if _, err := conn.Write([]byte(question)); err != nil {
		return err
	}
	buf := make([]byte, 1024)
	for answers := ""; !strings.Contains(answers, question); {
		k, err := conn.Read(buf)
		if err != nil {
			return err
		}
		answers += string(buf[:k])
	}
	return nil
}

// SYNs begins to count the SYNs over IPv4 that pass the nftables hook in the network namespace. match is a further
// condition as nft writes it, or empty. The returned function returns the count. If an answer comes late, TCP repeats a
// SYN that was not dropped. So a repeated SYN doesn't show a drop: a SYN was dropped only if fewer SYNs have arrived
// than were sent.
func SYNs(t testing.TB, netns, hook, match string) (count func() int) {
	t.Helper()
	nft := func(command string) string {
		t.Helper()
		return Run(t, "nsenter", "--net="+netns, "nft", command)
	}
	chain := "ip syns " + hook
	nft("add table ip syns; add chain " + chain + " { type filter hook " + hook + " priority 0; }; add rule " + chain +
		" " + match + " tcp flags & (syn | ack) == syn counter")
	return func() (n int) {
		t.Helper()
		list := nft("list chain " + chain)
		_, packets, _ := strings.Cut(list, "counter packets ")
		if _, err := fmt.Sscan(packets, &n); err != nil {
			t.Fatalf("count SYNs: %v:\n%s", err, list)
		}
		return n
	}
}

func greeting(conn net.Conn, within time.Duration) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	k, err := conn.Read(buf)
	return strings.TrimSpace(string(buf[:k])), err
}

// Reach waits until the pod can connect to the TCP address. If want is false, it waits until two attempts in a row have
// failed, because on a busy machine a single attempt may fail although its packets pass. After three minutes, the test
// fails.
func (n *Node) Reach(from *Pod, address string, want bool) {
	n.Helper()
	n.ReachFrom(from.Netns, address, want)
}

func (n *Node) ReachFrom(netns, address string, want bool) {
	n.Helper()
	failed := 0
	n.Eventually(fmt.Sprintf("%s reaches %s: %v", filepath.Base(netns), address, want), func() error {
		err := reach(n, netns, address, want)
		if failed++; err == nil {
			failed = 0
		}
		if (err == nil) != want || failed == 1 {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}

// reach connects. If greeted is true, it also waits for the server's greeting. A greeting may be late on a busy
// machine, so its absence doesn't show that packets are dropped.
func reach(t testing.TB, netns, address string, greeted bool) error {
	t.Helper()
	if greeted {
		_, err := Get(t, netns, address)
		return err
	}
	conn, err := Dial(t, netns, "tcp", address)
	if err == nil {
		_ = conn.Close()
	}
	return err
}

// atLast is how long Eventually waits. It is long enough for a machine that is twenty times slower than a usual
// machine.
const atLast = 3 * time.Minute

// Eventually calls f until f returns nil. After three minutes, the test fails.
func (n *Node) Eventually(what string, f func() error) {
	n.Helper()
	deadline := time.Now().Add(atLast)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("%s: not within %v: %v", what, atLast, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
