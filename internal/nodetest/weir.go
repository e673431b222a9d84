package nodetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const binEnv = "WEIR_NODETEST_BIN"

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "weir-test-bin-")
	if err != nil {
		return "", err
	}
	agent := []string{"github.com/weir-net/weir/plugins/weir-agent"}
	if raceDetector {
		agent = append([]string{"-race"}, agent...)
	}
	err = errors.Join(goBuild(dir, "-trimpath", "-ldflags=-s -w",
		"github.com/weir-net/weir/plugins/weir", "github.com/weir-net/weir/plugins/weirctl",
		"github.com/containernetworking/cni/cnitool", "github.com/containernetworking/plugins/plugins/meta/portmap"),
		goBuild(dir, agent...))
	return dir, err
})

// official remembers which of the official plugins were built.
var official = struct {
	sync.Mutex
	built map[string]bool
}{built: map[string]bool{}}

// buildOfficial builds those plugins of github.com/containernetworking/plugins, of go.mod's version, beside weir's
// programs: "main/ptp", "ipam/host-local", "meta/sbr".
func buildOfficial(dir string, names []string) error {
	official.Lock()
	defer official.Unlock()
	var packages []string
	for _, name := range names {
		if !official.built[name] {
			packages = append(packages, "github.com/containernetworking/plugins/plugins/"+name)
			official.built[name] = true
		}
	}
	if len(packages) == 0 {
		return nil
	}
	return goBuild(dir, append([]string{"-trimpath", "-ldflags=-s -w"}, packages...)...)
}

func goBuild(dir string, args ...string) error {
	if out, err := exec.Command("go", append([]string{"build", "-o", dir}, args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", args, err, out)
	}
	return nil
}

// Main is for TestMain of packages whose tests use a Node: it removes the binaries that were built for them.
func Main(m *testing.M) {
	code := m.Run()
	if os.Getenv(inside) == "" {
		if dir, err := build(); err == nil {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

// IsolatedWithWeir is Isolated for tests that run weir's real binaries on the node, and these of the official plugins.
func IsolatedWithWeir(t *testing.T, plugins ...string) bool {
	t.Helper()
	if os.Getenv(inside) == "" {
		dir, err := build()
		if err == nil {
			err = buildOfficial(dir, plugins)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Setenv(binEnv, dir); err != nil {
			t.Fatal(err)
		}
	}
	return Isolated(t)
}

// Node is a node with weir installed: a conflist of weir and portmap, a directory of manifests, and the world outside.
type Node struct {
	testing.TB
	Bin       string
	ConfDir   string
	Manifests string
	Outside   string // path of the namespace beyond the node's uplink
	agent     *exec.Cmd
	agentLog  *os.File
}

// Conf is the plugin's part of the conflist; tests change it before they add pods.
type Conf map[string]any

// NewNode sets weir up on the node that the test has for itself. Keys of conf are added to, or replace, the plugin's.
func NewNode(t testing.TB, conf Conf) *Node {
	t.Helper()
	n := &Node{TB: t, Bin: os.Getenv(binEnv), ConfDir: t.TempDir(), Manifests: t.TempDir(), Outside: Outside(t)}
	n.Configure(conf)
	return n
}

// Configure writes the conflist of weir and portmap.
func (n *Node) Configure(conf Conf) {
	n.Helper()
	plugin := Conf{"type": "weir", "ranges": []any{Conf{"subnet": "10.88.0.0/24"}}}
	for k, v := range conf {
		plugin[k] = v
	}
	n.ConfigureList(plugin, Conf{"type": "portmap", "capabilities": Conf{"portMappings": true}})
}

// ConfigureList writes the conflist of these plugins.
func (n *Node) ConfigureList(plugins ...Conf) {
	n.Helper()
	list, err := json.Marshal(Conf{"cniVersion": "1.0.0", "name": "weir", "plugins": plugins})
	if err == nil {
		err = os.WriteFile(filepath.Join(n.ConfDir, "10-weir.conflist"), list, 0o600)
	}
	if err != nil {
		n.Fatal(err)
	}
}

// StartAgent starts weir-agent and waits until it is ready.
func (n *Node) StartAgent() {
	n.Helper()
	n.SpawnAgent()
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
}

// Ctl runs weirctl and returns what it printed.
func (n *Node) Ctl(args ...string) (string, error) {
	out, err := exec.Command(filepath.Join(n.Bin, "weirctl"), args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("weirctl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// SpawnAgent starts weir-agent and doesn't wait. Without flags it goes by the node's manifests.
func (n *Node) SpawnAgent(flags ...string) {
	n.Helper()
	if len(flags) == 0 {
		flags = []string{"--source", "dir:" + n.Manifests}
	}
	log, err := os.OpenFile(filepath.Join(n.TempDir(), "agent.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		n.Fatal(err)
	}
	n.agentLog = log
	n.agent = exec.Command(filepath.Join(n.Bin, "weir-agent"), append([]string{"run"}, flags...)...)
	n.agent.Stderr = log
	n.agent.Env = append(os.Environ(), "GORACE=halt_on_error=1")
	if err := n.agent.Start(); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		n.KillAgent()
		if n.Failed() {
			n.Logf("weir-agent said:\n%s", n.AgentLog())
		}
		if strings.Contains(n.AgentLog(), "DATA RACE") {
			n.Errorf("weir-agent has a data race:\n%s", n.AgentLog())
		}
	})
}

// AgentLog is what the agent has logged.
func (n *Node) AgentLog() string {
	n.Helper()
	data, err := os.ReadFile(n.agentLog.Name())
	if err != nil {
		n.Fatal(err)
	}
	return string(data)
}

// KillAgent ends it at once, as a crash would.
func (n *Node) KillAgent() { n.signal(syscall.SIGKILL) }

// StopAgent ends it as kubelet would.
func (n *Node) StopAgent() { n.signal(syscall.SIGTERM) }

func (n *Node) signal(s os.Signal) {
	n.Helper()
	if n.agent == nil {
		return
	}
	if err := n.agent.Process.Signal(s); err != nil {
		n.Fatalf("end the agent: %v", err)
	}
	err := n.agent.Wait()
	n.agent = nil
	var exit *exec.ExitError
	if s == syscall.SIGTERM && err != nil || err != nil && !errors.As(err, &exit) {
		n.Errorf("weir-agent: %v", err)
	}
}

// Manifest writes (or with no text removes) a manifest, in one step as editors do.
func (n *Node) Manifest(name, text string) {
	n.Helper()
	path := filepath.Join(n.Manifests, name)
	var err error
	if text == "" {
		err = os.Remove(path)
	} else if err = os.WriteFile(path+".tmp", []byte(text), 0o600); err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		n.Fatal(err)
	}
}

// Pod is a pod that cnitool has attached.
type Pod struct {
	Namespace, Name string
	Netns           string
	IP, IP6         string // of each family, if it has one
	Result          string // JSON
}

// CNI runs cnitool on the pod's namespace and returns what it printed.
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

// Args are the CNI_ARGS that containerd gives for a pod.
func Args(namespace, name, uid string) string {
	args := fmt.Sprintf("IgnoreUnknown=1;K8S_POD_NAMESPACE=%s;K8S_POD_NAME=%s;K8S_POD_INFRA_CONTAINER_ID=x", namespace, name)
	if uid != "" {
		args += ";K8S_POD_UID=" + uid
	}
	return args
}

// AddPod makes a namespace and attaches it as the pod.
func (n *Node) AddPod(namespace, name string, env ...string) *Pod {
	n.Helper()
	p, err := n.TryAddPod(namespace, name, env...)
	if err != nil {
		n.Fatal(err)
	}
	return p
}

// TryAddPod is AddPod for pods that may be refused.
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
	var result struct {
		IPs []struct{ Address string }
	}
	if err := json.Unmarshal([]byte(out), &result); err != nil || len(result.IPs) == 0 {
		return p, fmt.Errorf("cnitool add printed %q: %w", out, err)
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
	return p, nil
}

// DelPod detaches the pod and removes its namespace.
func (n *Node) DelPod(p *Pod) {
	n.Helper()
	if _, err := n.CNI("del", p.Netns, Args(p.Namespace, p.Name, "")); err != nil {
		n.Fatal(err)
	}
	DelNS(n, p.Netns)
}

// wait is how long a test waits for what must not come, and longer than what must come ever takes.
const wait = 250 * time.Millisecond

// Serve answers on the address in the namespace: TCP connections with "hello", UDP packets with themselves, and goes on
// echoing. It ends with the test.
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

// Dial connects from the namespace, and gives up after a quarter of a second: packets that are dropped are not answered.
func Dial(t testing.TB, netns, network, address string) (conn net.Conn, err error) {
	t.Helper()
	In(t, netns, func() error {
		conn, err = net.DialTimeout(network, address, wait)
		return nil
	})
	return conn, err
}

// Get connects and returns the greeting, in which the server says whom it sees.
func Get(t testing.TB, netns, address string) (string, error) {
	t.Helper()
	conn, err := Dial(t, netns, "tcp", address)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	buf := make([]byte, 100)
	k, err := conn.Read(buf)
	return strings.TrimSpace(string(buf[:k])), err
}

// Reach fails the test unless a connection to the address succeeds (or fails, as wanted). A connection that a change of
// policy decides may take until the agent has seen the change, so it is tried for some time.
func (n *Node) Reach(from *Pod, address string, want bool) {
	n.Helper()
	n.ReachFrom(from.Netns, address, want)
}

// ReachFrom is Reach from any namespace.
func (n *Node) ReachFrom(netns, address string, want bool) {
	n.Helper()
	n.Eventually(fmt.Sprintf("%s reaches %s: %v", filepath.Base(netns), address, want), func() error {
		_, err := Get(n, netns, address)
		if (err == nil) != want {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}

// Eventually tries until f returns nil, for half a minute at most: the machine may be busy.
func (n *Node) Eventually(what string, f func() error) {
	n.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("%s: not within half a minute: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
