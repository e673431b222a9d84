package blackbox

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// nodeManifest returns the manifest of a Node. addresses are its InternalIPs and networks its podCIDRs, separated by
// spaces. minute is the minute of the Node's creation.
func nodeManifest(name string, minute int, addresses, networks string) string {
	var b strings.Builder
	fmt.Fprintf(&b,
		"---\napiVersion: v1\nkind: Node\nmetadata: {name: %s, creationTimestamp: \"2026-01-01T00:%02d:00Z\"}\n", name,
		minute)
	quoted := func(list string) string {
		f := strings.Fields(list)
		for i := range f {
			f[i] = fmt.Sprintf("%q", f[i])
		}
		return strings.Join(f, ", ")
	}
	fmt.Fprintf(&b, "spec: {podCIDRs: [%s]}\nstatus:\n  addresses:\n  - {type: Hostname, address: x}\n", quoted(networks))
	for _, a := range strings.Fields(addresses) {
		fmt.Fprintf(&b, "  - {type: InternalIP, address: %q}\n", a)
	}
	return b.String()
}

// honestNodes returns the manifests of the Nodes n1, n2 and so on. The first Nodes have their IPv4 addresses in one
// subnet: the parameter shared is the number of these Nodes. Every later Node has a subnet of its own.
func honestNodes(size, shared int) string {
	var b strings.Builder
	for i := 1; i <= size; i++ {
		address := fmt.Sprintf("172.20.%d.10", i)
		if i <= shared {
			address = fmt.Sprintf("172.21.0.%d", i)
		}
		b.WriteString(nodeManifest(fmt.Sprint("n", i), i, fmt.Sprintf("%s 2001:db8:%d::10", address, i),
			fmt.Sprintf("100.96.%d.0/24 fd00:96:%d::/64", i, i)))
	}
	return b.String()
}

func labPods(size int) string {
	b := "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: lab}\n"
	for i := 1; i <= size; i++ {
		b += fmt.Sprintf("---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%d, namespace: lab}\nspec: {nodeName: n%d}\n",
			i, i)
	}
	return b
}

var hostileClaims = []struct{ name, addresses, networks string }{
	{"no host's addresses", "0.0.0.0 224.0.0.1 255.255.255.255", "100.96.77.0/24"},
	{"multicast first", "224.0.0.1", "100.96.77.0/24"},
	{"loopback", "127.0.0.1 ::1", "127.0.0.0/8"},
	{"link-local", "169.254.1.1 fe80::1", "169.254.0.0/16 fe80::/64"},
	{"others' InternalIPs", "172.21.0.1 172.21.0.2 172.20.3.10 2001:db8:3::10", "100.96.77.0/24"},
	{"everything", "172.20.9.10", "0.0.0.0/0 ::/0"},
	{"half of everything", "172.20.9.10", "128.0.0.0/1 0.0.0.0/1"},
	{"the nodes' networks", "172.20.9.10", "172.20.0.0/16 172.21.0.0/16 2001:db8::/32"},
	{"a node's address as a network", "172.20.9.10", "172.21.0.2/32 2001:db8:1::10/128"},
	{"another node's network", "172.20.9.10", "100.96.2.0/24 fd00:96:2::/64"},
	{"all nodes' networks", "172.20.9.10", "100.96.0.0/11 fd00:96::/32"},
	{"a pod's address", "100.96.1.2", "100.96.2.2/32"},
	{"multicast", "172.20.9.10", "224.0.0.0/4 ff00::/8"},
	{
		"all at once", "0.0.0.0 224.0.0.1 127.0.0.1 169.254.1.1 172.21.0.1 100.96.2.2 ::1",
		"127.0.0.0/8 0.0.0.0/0 172.20.0.0/16 100.96.2.0/24 100.96.1.2/32 100.96.0.0/11",
	},
}

// TestHostileNode: if one Node claims addresses or networks of other Nodes, every agent reports only this Node, and the
// pods of the other nodes still reach each other.
func TestHostileNode(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c := nodetest.NewCluster(t, 4)
	shareSubnet(c)
	c.Manifest("nodes.yaml", honestNodes(4, 2))
	c.Manifest("pods.yaml", labPods(4))
	var pods []*nodetest.Pod
	for _, mode := range []string{"always", "crossSubnet", "never"} {
		for _, n := range c.Nodes {
			n.StopAgent()
			n.StartAgent("--encapsulation", mode)
		}
		if mode == "always" {
			for i, n := range c.Nodes {
				c.Eventually("the configuration of "+n.Name, func() error { _, err := os.Stat(n.Conflist); return err })
				p := n.AddPod("lab", fmt.Sprint("p", i+1))
				c.Serve(p.Netns, "tcp4", p.IP+":80")
				pods = append(pods, p)
			}
		}
		allReach(c, pods, mode)
		for _, claim := range hostileClaims {
			c.Manifest("a-evil.yaml", nodeManifest("a-evil", 9, claim.addresses, claim.networks))
			c.Eventually("the problems are told of", func() error {
				for _, n := range c.Nodes {
					out, _ := n.Ctl("status")
					if !strings.Contains(out, "Node a-evil") {
						return fmt.Errorf("%s says nothing of a-evil:\n%s", n.Name, out)
					}
				}
				return nil
			})
			for _, n := range c.Nodes {
				out, err := n.Ctl("status")
				if err != nil || strings.Contains(out, "ERROR") {
					t.Errorf("%s, %s: the status of %s: %v\n%s", mode, claim.name, n.Name, err, out)
				}
				for line := range strings.Lines(out) {
					if strings.Contains(line, "PROBLEM") && !strings.Contains(line, "Node a-evil") {
						t.Errorf("%s, %s: on %s: %s", mode, claim.name, n.Name, line)
					}
				}
			}
			allReach(c, pods, mode+", "+claim.name)
			n := c.Nodes[1]
			n.StopAgent()
			n.Run("sh", "-c", "ip route flush proto 88; ip -6 route flush proto 88; ip link del weir-vxlan || true")
			if err := os.Remove(n.Conflist); err != nil {
				t.Fatal(err)
			}
			n.StartAgent("--encapsulation", mode)
			c.Eventually("a new node gets its configuration ("+mode+", "+claim.name+")",
				func() error { _, err := os.Stat(n.Conflist); return err })
			allReach(c, pods, mode+", new, "+claim.name)
			c.Manifest("a-evil.yaml", "")
		}
	}
}

// shareSubnet connects n1 and n2 by a second link in a common subnet, so that they need no tunnel in the mode
// crossSubnet.
func shareSubnet(c *nodetest.Cluster) {
	c.Helper()
	lines := []string{
		"ip link add eth1 netns n1 mtu 1400 type veth peer name eth1 mtu 1400 netns n2",
		"ip -n n1 addr add 172.21.0.1/24 dev eth1", "ip -n n2 addr add 172.21.0.2/24 dev eth1",
		"ip -n n1 link set eth1 up", "ip -n n2 link set eth1 up",
		"ip -n router route add 172.21.0.1/32 via 172.20.1.10", "ip -n router route add 172.21.0.2/32 via 172.20.2.10",
	}
	for i := range c.Nodes {
		lines = append(lines, fmt.Sprintf("ip -n router route add 100.96.%d.0/24 via 172.20.%d.10", i+1, i+1))
	}
	nodetest.RunEach(c, lines...)
}

func allReach(c *nodetest.Cluster, pods []*nodetest.Pod, when string) {
	c.Helper()
	for _, from := range pods {
		for _, to := range pods {
			if from == to {
				continue
			}
			c.Eventually(fmt.Sprintf("%s: %s reaches %s", when, from.Name, to.Name), func() error {
				_, err := nodetest.Get(c, from.Netns, to.IP+":80")
				return err
			})
		}
	}
}
