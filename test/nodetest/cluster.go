package nodetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Cluster is several nodes behind a router. Each node is a network namespace with its own subnet and weir-agent. All
// nodes have the same directory of manifests.
type Cluster struct {
	testing.TB
	Bin       string
	Manifests string
	Nodes     []*ClusterNode
}

// ClusterNode is node I of a cluster, from 1, with the name nI. Its uplink eth0 has the addresses 172.20.I.10/24 and
// 2001:db8:I::10/64, the MAC 02:00:00:00:0I:02 and the MTU 1400. The router's link rI has 172.20.I.1, 2001:db8:I::1 and
// the MAC 02:00:00:00:0I:01.
type ClusterNode struct {
	Name, Netns string
	Conflist    string // path of the CNI configuration that the node's agent writes
	cluster     *Cluster
	holder      *exec.Cmd // a process that keeps the node's mount namespace
	agent       *exec.Cmd
	log         string
}

const RouterNS = "/run/netns/router"

// NewCluster makes a cluster with size nodes. A test may call it only after IsolatedWithWeir has returned true.
func NewCluster(t testing.TB, size int) *Cluster {
	t.Helper()
	c := &Cluster{TB: t, Bin: os.Getenv(binEnv), Manifests: t.TempDir()}
	// With this mount, network namespaces that are made later also appear in /run on the nodes.
	if err := syscall.Mount("none", "/run", "", syscall.MS_SHARED, ""); err != nil {
		t.Fatalf("share /run: %v", err)
	}
	NewNS(t, "router")
	c.forward(RouterNS)
	for i := 1; i <= size; i++ {
		n := &ClusterNode{Name: fmt.Sprint("n", i), cluster: c}
		n.Netns = NewNS(t, n.Name)
		dir := t.TempDir()
		n.Conflist, n.log = filepath.Join(dir, "10-weir.conflist"), filepath.Join(dir, "agent.log")
		for _, line := range []string{
			"ip link add eth0 address 02:00:00:00:0I:02 netns nI mtu 1400 type veth peer name rI address 02:00:00:00:0I:01 " +
				"mtu 1400 netns router",
			"ip -n router addr add 172.20.I.1/24 dev rI",
			"ip -n router addr add 2001:db8:I::1/64 dev rI nodad",
			"ip -n router link set rI up",
			"ip -n nI addr add 172.20.I.10/24 dev eth0",
			"ip -n nI addr add 2001:db8:I::10/64 dev eth0 nodad",
			"ip -n nI link set lo up",
			"ip -n nI link set eth0 up",
			"ip -n nI route add default via 172.20.I.1",
			"ip -n nI -6 route add default via 2001:db8:I::1",
			"ip -n nI neigh add 2001:db8:I::1 lladdr 02:00:00:00:0I:01 dev eth0 nud permanent",
			"ip -n router neigh add 2001:db8:I::10 lladdr 02:00:00:00:0I:02 dev rI nud permanent",
		} {
			f := strings.Fields(strings.ReplaceAll(line, "I", fmt.Sprint(i)))
			Run(t, f[0], f[1:]...)
		}
		c.forward(n.Netns)
		n.hold()
		c.Nodes = append(c.Nodes, n)
	}
	return c
}

func (c *Cluster) forward(netns string) {
	c.Helper()
	In(c, netns, func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0o600))
	})
}

func (n *ClusterNode) hold() {
	t := n.cluster
	t.Helper()
	n.holder = exec.Command("nsenter", "--net="+n.Netns, "unshare", "--mount", "--propagation=slave", "sh", "-c",
		"mkdir -p /run/weir /var/lib/cni && mount -t tmpfs weir /run/weir && mount -t tmpfs cni /var/lib/cni && echo done "+
			"&& exec sleep infinity")
	out, err := n.holder.StdoutPipe()
	if err == nil {
		err = n.holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = n.holder.Process.Kill()
		_ = n.holder.Wait()
	})
	if _, err := out.Read(make([]byte, 10)); err != nil {
		t.Fatalf("make the mount namespace of %s: %v", n.Name, err)
	}
}

// Command returns a command that runs in the node's network and mount namespaces.
func (n *ClusterNode) Command(name string, args ...string) *exec.Cmd {
	pid := fmt.Sprint(n.holder.Process.Pid)
	return exec.CommandContext(context.Background(), "nsenter",
		append([]string{"--net=" + n.Netns, "--mount=/proc/" + pid + "/ns/mnt", "--", name}, args...)...)
}

// Run runs a command on the node, and returns its output. If the command fails, the test ends.
func (n *ClusterNode) Run(name string, args ...string) string {
	n.cluster.Helper()
	out, err := n.Command(name, args...).CombinedOutput()
	if err != nil {
		n.cluster.Fatalf("on %s: %s %s: %v\n%s", n.Name, name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Ctl runs weirctl on the node, and returns its output, including errors.
func (n *ClusterNode) Ctl(args ...string) (string, error) {
	out, err := n.Command(filepath.Join(n.cluster.Bin, "weirctl"), args...).CombinedOutput()
	return string(out), err
}

// StartAgent starts the node's agent with additional flags, and waits until it is ready.
func (n *ClusterNode) StartAgent(flags ...string) {
	t := n.cluster
	t.Helper()
	n.SpawnAgent(flags...)
	t.Eventually("the agent of "+n.Name+" is ready", func() error {
		out, err := n.Ctl("status")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// SpawnAgent starts the node's agent with additional flags, and doesn't wait until the agent is ready.
func (n *ClusterNode) SpawnAgent(flags ...string) {
	t := n.cluster
	t.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	n.agent = n.Command(filepath.Join(t.Bin, "weir-agent"),
		append([]string{"run", "--source", "dir:" + t.Manifests, "--node-name", n.Name, "--conflist", n.Conflist},
			withBackend(flags)...)...)
	n.agent.Stderr = log
	err = errors.Join(n.agent.Start(), log.Close())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.StopAgent()
		if t.Failed() {
			data, err := os.ReadFile(n.log)
			t.Logf("weir-agent on %s said (%v):\n%s", n.Name, err, data)
		}
	})
}

// StopAgent ends the agent with SIGTERM, as kubelet does. It does nothing if no agent runs.
func (n *ClusterNode) StopAgent() {
	n.cluster.Helper()
	if n.agent == nil {
		return
	}
	if err := n.agent.Process.Signal(syscall.SIGTERM); err != nil {
		n.cluster.Fatalf("end the agent of %s: %v", n.Name, err)
	}
	_ = n.agent.Wait()
	n.agent = nil
}

// AddPod makes a network namespace and attaches it, with the configuration that the node's agent has written.
func (n *ClusterNode) AddPod(namespace, name string) *Pod {
	n.cluster.Helper()
	p := &Pod{Namespace: namespace, Name: name, Netns: filepath.Join("/run/netns", namespace+"."+name)}
	NewNS(n.cluster, namespace+"."+name)
	cmd := n.Command(filepath.Join(n.cluster.Bin, "cnitool"), "add", "weir", p.Netns)
	cmd.Env = append(os.Environ(), "CNI_PATH="+n.cluster.Bin, "NETCONFPATH="+filepath.Dir(n.Conflist),
		"CNI_ARGS="+Args(namespace, name, ""))
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		err = p.read(string(out))
	}
	if err != nil {
		n.cluster.Fatalf("add pod %s/%s to %s: %v\n%s%s", namespace, name, n.Name, err, out, &said)
	}
	return p
}

// Eventually calls f until f returns nil. After three minutes, the test fails.
func (c *Cluster) Eventually(what string, f func() error) {
	c.Helper()
	(&Node{TB: c.TB}).Eventually(what, f)
}

func (c *Cluster) Serve(netns, network, address string) {
	c.Helper()
	(&Node{TB: c.TB}).Serve(netns, network, address)
}

// Manifest writes a manifest in one step. If the text is empty, it removes the manifest.
func (c *Cluster) Manifest(name, text string) {
	c.Helper()
	(&Node{TB: c.TB, Manifests: c.Manifests}).Manifest(name, text)
}
