package blackbox

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

// TestLinkLocalBehindBridge: pods on another plugin's bridge don't reach each other, or the node, by link-local
// addresses. Policies apply to pods' other addresses only.
func TestLinkLocalBehindBridge(t *testing.T) {
	if !isolatedBehind(t, "bridge") {
		return
	}
	n := attachedBy(t, "bridge", isolated)
	server, client, other := n.AddPod("shop", "server"), n.AddPod("shop", "client"), n.AddPod("shop", "other")
	for _, netns := range []string{server.Netns, other.Netns, nodetest.Self} {
		n.Serve(netns, "tcp6", ":80")
	}
	toServer, toOther := linkLocalOf(n, server.Netns, "eth0"), linkLocalOf(n, other.Netns, "eth0")
	toNode := linkLocalOf(n, nodetest.Self, "cni0")
	n.Reach(other, "[fd00:10:99::1]:80", true) // the gateway, which is found by neighbour discovery
	for _, x := range []struct {
		from    *nodetest.Pod
		address string
	}{{other, toServer}, {client, toOther}, {client, toNode}, {server, toNode}} {
		for range 3 {
			if _, err := nodetest.Get(t, x.from.Netns, x.address); err == nil {
				t.Errorf("%s reaches %s", x.from.Name, x.address)
				break
			}
		}
	}
}

// TestLinkLocalOfStrangers: an unknown host on another plugin's bridge reaches an isolated pod by the pod's link-local
// address, and not by the pod's other address. docs/security-windows.md names this window.
func TestLinkLocalOfStrangers(t *testing.T) {
	if !isolatedBehind(t, "bridge") {
		return
	}
	n := attachedBy(t, "bridge", isolated)
	server := n.AddPod("shop", "server")
	n.Serve(server.Netns, "tcp6", ":80")
	stranger := nodetest.NewNS(t, "stranger")
	nodetest.RunEach(t,
		"ip link add stranger type veth peer name eth0 netns stranger", "ip link set stranger master cni0 up",
		"ip -n stranger address add fd00:10:99::77/64 dev eth0 nodad", "ip -n stranger link set eth0 up",
	)
	n.ReachFrom(stranger, linkLocalOf(n, server.Netns, "eth0"), true)
	n.ReachFrom(stranger, "["+server.IP6+"]:80", false)
}

// TestLinkLocalWithoutIPv6Pods: if no pod of the node has an IPv6 address, pods on another plugin's bridge reach each
// other by link-local addresses, until the rule that docs/security-windows.md names prevents it.
func TestLinkLocalWithoutIPv6Pods(t *testing.T) {
	if !isolatedBehind(t, "bridge") {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.ConfigureList(nodetest.Conf{
		"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": nodetest.Conf{
			"type": "host-local", "ranges": []any{[]any{nodetest.Conf{"subnet": "10.99.0.0/24"}}},
		},
	}, nodetest.Conf{"type": "weir"})
	n.Manifest("cluster.yaml", isolated)
	n.StartAgent()
	server, other := n.AddPod("shop", "server"), n.AddPod("shop", "other")
	n.Serve(server.Netns, "tcp6", ":80")
	n.Reach(other, linkLocalOf(n, server.Netns, "eth0"), true)
	nodetest.RunEach(t, "ip6tables -I FORWARD -i cni0 -o cni0 -j DROP")
	n.Reach(other, linkLocalOf(n, server.Netns, "eth0"), false)
}

// linkLocalOf waits until the link has a link-local address that the kernel has checked. It returns this address with
// the zone eth0 and the port 80, as a client in a pod writes it.
func linkLocalOf(n *nodetest.Node, netns, link string) (address string) {
	n.Eventually("a link-local address of "+link, func() error {
		for line := range strings.Lines(nodetest.Run(n, "nsenter", "--net="+netns,
			"ip", "-6", "-o", "address", "show", "dev", link, "scope", "link")) {
			if fields := strings.Fields(line); len(fields) > 3 && !strings.Contains(line, "tentative") {
				address, _, _ = strings.Cut(fields[3], "/")
				return nil
			}
		}
		return fmt.Errorf("it has none")
	})
	return "[" + address + "%eth0]:80"
}
