package blackbox

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

func conflistMTU(c *nodetest.Cluster, n *nodetest.ClusterNode, want int) {
	c.Helper()
	c.Eventually(fmt.Sprintf("the MTU of pods of %s is %d", n.Name, want), func() error {
		data, err := os.ReadFile(n.Conflist)
		if err == nil && !strings.Contains(string(data), fmt.Sprintf(`"mtu": %d,`, want)) {
			err = fmt.Errorf("the configuration is %s", data)
		}
		return err
	})
}

func addressOnLo(c *nodetest.Cluster) {
	for i := range c.Nodes {
		for _, line := range []string{
			"ip -n nI addr add 172.22.0.I/32 dev lo", "ip -n router route add 172.22.0.I/32 via 172.20.I.10",
			"ip -n nI route replace default via 172.20.I.1 src 172.22.0.I",
		} {
			f := strings.Fields(strings.ReplaceAll(line, "I", fmt.Sprint(i+1)))
			nodetest.Run(c, f[0], f[1:]...)
		}
	}
}

// TestMTUFollowsTheRoute: pods get the MTU of the route to the other node, less 50 bytes for the tunnel. If the route
// has several next hops, the smallest MTU counts.
func TestMTUFollowsTheRoute(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c := nodetest.NewCluster(t, 2)
	addressOnLo(c)
	nodes := nodeManifest("n1", 1, "172.22.0.1", "100.96.1.0/24") + nodeManifest("n2", 2, "172.22.0.2", "100.96.2.0/24")
	c.Manifest("nodes.yaml", nodeManifest("n1", 1, "172.22.0.1", "100.96.1.0/24"))
	c.Manifest("pods.yaml", labPods(2))
	n := c.Nodes[0]
	n.StartAgent()
	conflistMTU(c, n, 1350) // from the default route's MTU, because the cluster has no other node yet
	c.Manifest("nodes.yaml", nodes)
	conflistMTU(c, n, 1350)
	c.Nodes[1].StartAgent()
	conflistMTU(c, c.Nodes[1], 1350)
	p1, p2 := n.AddPod("lab", "p1"), c.Nodes[1].AddPod("lab", "p2")
	c.Serve(p2.Netns, "tcp4", p2.IP+":80")
	c.Eventually("p1 reaches p2", func() error { _, err := nodetest.Get(t, p1.Netns, p2.IP+":80"); return err })
	nodetest.RunEach(t,
		"ip link add eth1 netns n1 mtu 1300 type veth peer name x1 mtu 1300 netns router",
		"ip -n router addr add 172.23.0.1/24 dev x1", "ip -n router link set x1 up",
		"ip -n n1 addr add 172.23.0.10/24 dev eth1", "ip -n n1 link set eth1 up",
		"ip -n n1 route add 172.22.0.2/32 nexthop via 172.20.1.1 nexthop via 172.23.0.1",
	)
	conflistMTU(c, n, 1250)
	nodetest.Run(t, "ip", "-n", "n1", "route", "replace", "172.22.0.2/32", "via", "172.20.1.1", "mtu", "1200")
	conflistMTU(c, n, 1150)
	nodetest.Run(t, "ip", "-n", "n1", "route", "del", "172.22.0.2/32")
	conflistMTU(c, n, 1350)
	c.Eventually("p1 reaches p2", func() error { _, err := nodetest.Get(t, p1.Netns, p2.IP+":80"); return err })
}

// TestNextHopOfTheOtherFamily: if the route to a node's IPv4 address has an IPv6 next hop, packets to the node's pods
// take the tunnel, in the mode crossSubnet too.
func TestNextHopOfTheOtherFamily(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c := nodetest.NewCluster(t, 2)
	for i := 1; i <= 2; i++ {
		nodetest.Run(t, "ip", "-n", fmt.Sprint("n", i), "route", "del", "0.0.0.0/0")
		nodetest.Run(t, "ip", "-n", fmt.Sprint("n", i), "route", "add", "0.0.0.0/0", "via", "inet6",
			fmt.Sprintf("2001:db8:%d::1", i), "dev", "eth0")
	}
	c.Manifest("nodes.yaml", nodeManifest("n1", 1, node1, "100.96.1.0/24")+nodeManifest("n2", 2, node2, "100.96.2.0/24"))
	c.Manifest("pods.yaml", labPods(2))
	var pods []*nodetest.Pod
	for i, n := range c.Nodes {
		n.StartAgent("--encapsulation", "crossSubnet")
		awaitConflist(c, n)
		pods = append(pods, n.AddPod("lab", fmt.Sprint("p", i+1)))
		c.Serve(pods[i].Netns, "tcp4", pods[i].IP+":80")
	}
	for _, n := range c.Nodes {
		if out := n.Run("sh", "-c", "ip route show proto 88"); !strings.Contains(out, "dev weir-vxlan") {
			t.Errorf("%s takes the other node for one in its subnet:\n%s", n.Name, out)
		}
	}
	allReach(c, pods, "crossSubnet")
}

// TestOverlayPortAndVNI: if another overlay uses weir's default port and VNI, weir works with another port and VNI.
// Pods can't send to the port that weir uses.
func TestOverlayPortAndVNI(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c := nodetest.NewCluster(t, 2)
	c.Manifest("nodes.yaml", honestNodes(2, 0))
	c.Manifest("pods.yaml", labPods(2))
	var pods []*nodetest.Pod
	for i, n := range c.Nodes {
		n.Run("ip", "link", "add", "swarm", "type", "vxlan", "id", "88", "local", fmt.Sprintf("172.20.%d.10", i+1),
			"dstport", "4789")
		n.StartAgent("--overlay-port", "4790", "--overlay-vni", "99")
		awaitConflist(c, n)
		pods = append(pods, n.AddPod("lab", fmt.Sprint("p", i+1)))
		c.Serve(pods[i].Netns, "tcp4", pods[i].IP+":80")
	}
	allReach(c, pods, "another port and number")
	heard := nodetest.Sniff(t, nodetest.RouterNS, "r1")
	sendUDP(t, pods[0].Netns, "198.51.100.9:4790", []byte("to weir's port"))
	sendUDP(t, pods[0].Netns, node2+":4790", []byte("to weir's port"))
	c.Eventually("a pod sends to a port that no tunnel has", func() error {
		sendUDP(t, pods[0].Netns, "198.51.100.9:4789", []byte("to another's port"))
		passed := 0
		for _, f := range heard.Frames(false, 300*time.Millisecond) {
			if strings.Contains(string(f), "to weir's port") {
				t.Errorf("a pod sends to the tunnels' port: %q", f)
			}
			if strings.Contains(string(f), "to another's port") {
				passed++
			}
		}
		if passed == 0 {
			return errors.New("nothing arrives")
		}
		return nil
	})
}

// TestAnotherOverlayOnThePort: another overlay that uses weir's port with another VNI still works.
func TestAnotherOverlayOnThePort(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c, _ := lab(t, 2)
	nodetest.RunEach(t,
		"ip -n n1 link add swarm type vxlan id 4096 local 172.20.1.10 remote 172.20.1.1 dstport 4789",
		"ip -n n1 addr add 10.99.0.1/24 dev swarm", "ip -n n1 link set swarm up",
		"ip -n router link add swarm type vxlan id 4096 local 172.20.1.1 remote 172.20.1.10 dstport 4789",
		"ip -n router addr add 10.99.0.2/24 dev swarm", "ip -n router link set swarm up",
	)
	c.Serve(c.Nodes[0].Netns, "tcp4", "10.99.0.1:80")
	c.Eventually("the other overlay goes on",
		func() error { _, err := nodetest.Get(t, nodetest.RouterNS, "10.99.0.1:80"); return err })
}

// TestAHostFirewallByState: tunnel packets are untracked. So a host firewall that accepts only tracked packets drops
// them. Then weirctl status warns of the host firewall.
func TestAHostFirewallByState(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c, pods := lab(t, 2)
	n := c.Nodes[1]
	c.Serve(pods[1].Netns, "tcp4", pods[1].IP+":80")
	c.Eventually("p1 reaches p2", func() error { _, err := nodetest.Get(t, pods[0].Netns, pods[1].IP+":80"); return err })
	n.Run("sh", "-c",
		"iptables -A INPUT -i eth0 -p udp --dport 4789 -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT "+
			"&& iptables -A INPUT -i eth0 -j DROP")
	blocked := func(want bool) func() error {
		return func() error {
			_, _ = nodetest.Get(t, pods[0].Netns, pods[1].IP+":80")
			out, err := n.Ctl("status")
			if strings.Contains(out, "host firewall") != want {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		}
	}
	c.Eventually("the status tells of the firewall", blocked(true))
	n.Run("iptables", "-I", "INPUT", "-p", "udp", "--dport", "4789", "-j", "ACCEPT")
	c.Eventually("the status no longer tells of it", blocked(false))
}

// TestClusterCIDR: if a Node's network is outside of --cluster-cidr, weir makes no route to this network. The status
// names the network.
func TestClusterCIDR(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c := nodetest.NewCluster(t, 1)
	c.Manifest("nodes.yaml", honestNodes(1, 0)+nodeManifest("n2", 2, node2, "198.51.100.0/24"))
	n := c.Nodes[0]
	n.StartAgent("--cluster-cidr", "100.96.0.0/11,fd00:96::/32")
	awaitConflist(c, n)
	if out := n.Run("ip", "route"); strings.Contains(out, "198.51.100.") {
		t.Errorf("n2 has taken a network beyond the cluster's:\n%s", out)
	}
	if out, _ := n.Ctl("status"); !strings.Contains(out, "198.51.100.0/24") {
		t.Errorf("nothing is said of it:\n%s", out)
	}
}

// TestTheGateIsRepaired: if another program changes the gate (the table that checks tunnel packets), the agent restores
// it.
func TestTheGateIsRepaired(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c, pods := lab(t, 2)
	n := c.Nodes[1]
	whole := n.Run("nft", "-s", "list", "table", "inet", "weir-tunnel")
	for _, change := range []string{
		"flush chain inet weir-tunnel tunnel", "delete table inet weir-tunnel",
		"add table inet weir-tunnel { flags dormant; }", "flush ruleset",
		"add element inet weir-tunnel nodes4 { 192.0.2.77 }",
	} {
		n.Run("nft", change)
		c.Eventually("it is as before "+change, func() error {
			out, err := n.Command("nft", "-s", "list", "table", "inet", "weir-tunnel").CombinedOutput()
			if err == nil && string(out) != whole {
				err = fmt.Errorf("it is\n%s", out)
			}
			return err
		})
	}
	to := pods[1].IP
	if arrives(t, pods[1].Netns, to+":9", func() {
		wire(t, 2, node1, node2, vxlanPort, inTunnel(t, vni, forged(t, "100.96.2.77", to, "forged")))
	}, honest(t, to)) {
		t.Error("a tunnel brings packets of pods that aren't of its node")
	}
}
