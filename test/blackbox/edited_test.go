package blackbox

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

func ageless(manifests string) string {
	return regexp.MustCompile(`, creationTimestamp: "[^"]*"`).ReplaceAllString(manifests, "")
}

// problemOf returns a pattern for the output of weirctl status. The pattern matches if the output reports a problem of
// an object whose kind and name begin with the text in object.
func problemOf(object string) *regexp.Regexp {
	return regexp.MustCompile(`PROBLEM: +` + regexp.QuoteMeta(object))
}

// edited gives the Node a-evil each of the claims in turn. A claim is a pair: the Node's addresses, and its podCIDRs.
// Each time, every agent must report a problem of a-evil and of no other Node, and pods must still reach each other.
func edited(
	c *nodetest.Cluster, honest, ownAddress, ownNetwork string, manifest func(addresses, networks string) string,
	claims [][2]string,
) {
	c.Helper()
	c.Manifest("nodes.yaml", honest)
	c.Manifest("a-evil.yaml", manifest(ownAddress, ownNetwork))
	c.Manifest("pods.yaml", labPods(len(c.Nodes)))
	var pods []*nodetest.Pod
	for i, n := range c.Nodes {
		n.StartAgent()
		awaitConflist(c, n)
		pods = append(pods, n.AddPod("lab", fmt.Sprint("p", i+1)))
		c.Serve(pods[i].Netns, "tcp4", pods[i].IP+":80")
	}
	allReach(c, pods, "at first")
	for _, claim := range claims {
		c.Manifest("a-evil.yaml", manifest(claim[0], claim[1]))
		for _, n := range c.Nodes {
			c.Eventually(n.Name+" tells of the claim of "+claim[0]+" and "+claim[1], func() error {
				out, err := n.Ctl("status")
				if !problemOf("Node ").MatchString(out) {
					err = fmt.Errorf("it doesn't: %w\n%s", err, out)
				}
				return err
			})
			if out, err := n.Ctl("status"); err != nil || problemOf("Node n").MatchString(out) {
				c.Errorf("an edited Node is a problem of %s's: %v\n%s", n.Name, err, out)
			}
			if _, err := os.Stat(n.Conflist); err != nil {
				c.Error(err)
			}
		}
		allReach(c, pods, "with the claim of "+claim[0]+" and "+claim[1])
		c.Manifest("a-evil.yaml", manifest(ownAddress, ownNetwork))
		for _, n := range c.Nodes {
			c.Eventually(n.Name+" tells of nothing any more", func() error {
				out, err := n.Ctl("status")
				if strings.Contains(out, "PROBLEM") {
					err = fmt.Errorf("it does: %w\n%s", err, out)
				}
				return err
			})
		}
	}
}

// TestTheOldestNodeIsEdited: if the oldest Node is edited so that it claims networks or addresses of other Nodes, the
// other Nodes keep their claims.
func TestTheOldestNodeIsEdited(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	edited(nodetest.NewCluster(t, 2), honestNodes(2, 0), "172.20.9.10 2001:db8:9::10", "100.96.9.0/24 fd00:96:9::/64",
		func(addresses, networks string) string { return nodeManifest("a-evil", 0, addresses, networks) },
		[][2]string{
			{"172.20.2.10 2001:db8:9::10", "100.96.9.0/24"},
			{"172.20.9.10 2001:db8:9::10", "100.96.2.0/24"},
			{"172.20.10.10 2001:db8:9::10", "172.20.0.0/21"},
			{"100.96.2.2 2001:db8:9::10", "100.96.1.2/32"},
		})
}

// TestNodesWithoutAge: if Nodes have no creationTimestamp, and a Node claims an address or a network that belongs to
// another Node already, the earlier owner keeps the address or the network.
func TestNodesWithoutAge(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	honest := ageless(honestNodes(2, 0))
	edited(nodetest.NewCluster(t, 2), honest, "172.20.9.10 2001:db8:9::10", "100.96.9.0/24 fd00:96:9::/64",
		func(addresses, networks string) string {
			return ageless(nodeManifest("a-evil", 0, addresses, networks))
		},
		[][2]string{{"172.20.2.10 2001:db8:9::10", "100.96.9.0/24"}, {"172.20.9.10 2001:db8:9::10", "100.96.0.0/13"}})
}

// TestNetworksOfOthersHoldWhatANodeNeeds: if another node's network contains an address that this node needs, this node
// makes no route to this network.
func TestNetworksOfOthersHoldWhatANodeNeeds(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	c := nodetest.NewCluster(t, 2)
	c.Manifest("pods.yaml", labPods(2))
	c.Manifest("nodes.yaml", honestNodes(2, 0)+nodeManifest("n3", 3, "172.20.9.10 2001:db8:9::10",
		"172.20.1.0/29 172.20.2.1/32 172.17.0.0/24 100.96.9.0/24 2001:db8:1::/124"))
	for i, n := range c.Nodes {
		n.StartAgent()
		awaitConflist(c, n)
		router := fmt.Sprintf("172.20.%d.1", i+1)
		n.Run("ping", "-c1", "-w30", router)
		c.Eventually(n.Name+" has routes to networks that it doesn't need itself", func() error {
			out := n.Run("ip", "route")
			if !strings.Contains(out, "172.17.0.0/24 via") || !strings.Contains(out, "100.96.9.0/24 via") {
				return fmt.Errorf("it hasn't:\n%s", out)
			}
			return nil
		})
		n.Run("ip", "link", "add", "docker0", "type", "bridge")
		n.Run("ip", "addr", "add", "172.17.0.1/16", "dev", "docker0")
		n.Run("ip", "link", "set", "docker0", "up")
		c.Eventually("the network of docker0 is the node's own", func() error {
			if out := n.Run("ip", "route", "get", "172.17.0.9"); !strings.Contains(out, "dev docker0") {
				return fmt.Errorf("it isn't: %s", out)
			}
			return nil
		})
		// The agent first removes its own route to another node's network, and then reports this network.
		c.Eventually("the status of "+n.Name+" tells of docker0 and of "+router, func() error {
			out, err := n.Ctl("status")
			if err == nil && (!strings.Contains(out, "docker0") || !strings.Contains(out, router)) {
				err = fmt.Errorf("it doesn't:\n%s", out)
			}
			return err
		})
	}
	out := c.Nodes[0].Run("ip", "-6", "route")
	if strings.Contains(out, "2001:db8:1::/124") {
		t.Errorf("the IPv6 router's address is taken:\n%s", out)
	}
}
