//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestFullSizePackets: packets as large as a pod's MTU reach pods on the same node, in the same subnet and in another
// subnet, and are answered. The packets may not be fragmented.
func TestFullSizePackets(t *testing.T) {
	ns := namespace(t, "full-size")
	a, neighbour, remote := apart(t)
	client := pod{Namespace: ns, Name: "client", Node: a.name, Labels: "app: client", Image: probe, Command: idle}
	pods := []pod{client}
	for _, n := range []node{a, neighbour, remote} {
		pods = append(pods, pod{
			Namespace: ns,
			Name:      "on-" + n.name,
			Node:      n.name,
			Labels:    "app: server",
			Image:     probe,
			Command:   `[probe, listen, ":9000"]`,
		})
	}
	start(t, pods...)
	out, err := execIn(t.Context(), ns, "client", "cat", "/sys/class/net/eth0/mtu")
	if err != nil {
		t.Fatal(err)
	}
	mtu := strings.TrimSpace(out)
	for _, p := range pods[1:] {
		to := podIP(t, ns, p.Name) + ":9000"
		eventually(t, 10*time.Second, "a packet of "+mtu+" bytes to "+p.Name+" is answered", func() error {
			out, err := execIn(t.Context(), ns, "client", "probe", "datagram", "--size="+mtu, to)
			t.Logf("%s: %s", p.Name, strings.TrimSpace(out))
			return err
		})
	}
}

// TestForgedTunnelPackets: no node accepts tunnel packets from a host that isn't a node.
func TestForgedTunnelPackets(t *testing.T) {
	ns := namespace(t, "forged")
	a, neighbour, remote := apart(t)
	start(t,
		pod{
			Namespace: ns,
			Name:      "victim",
			Node:      remote.name,
			Labels:    "app: victim",
			Image:     probe,
			Command:   `[probe, listen, ":9000"]`,
		},
		pod{Namespace: ns, Name: "friend", Node: neighbour.name, Labels: "app: friend", Image: probe, Command: idle},
		pod{
			Namespace: ns,
			Name:      "attacker",
			Node:      a.name,
			Labels:    "app: attacker",
			Image:     probe,
			Command:   idle,
			More:      "    securityContext: {privileged: true}",
		})
	apply(t, `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: friends, namespace: forged}
spec:
  podSelector: {matchLabels: {app: victim}}
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
`, nil)
	victim, friend := podIP(t, ns, "victim"), podIP(t, ns, "friend")
	eventually(t, 10*time.Second, "the friend reaches the victim", func() error {
		_, err := execIn(t.Context(), ns, "friend", "probe", "datagram", "--size=100", victim+":9000")
		return err
	})
	var links []struct {
		Address string `json:"address"`
	}
	if err := json.Unmarshal([]byte(enter(t, remote.name, "ip", "-j", "link", "show", "type", "vxlan")),
		&links); err != nil || len(links) != 1 {
		t.Fatalf("the tunnel device of %s: %v %v", remote.name, links, err)
	}
	forge := func(tag, to string) []string {
		return []string{
			"probe", "forge", "--mac=" + links[0].Address, "--from=" + friend, "--to=" + victim, "--port=9000",
			"--text=" + tag, to,
		}
	}
	enter(t, "router", "sh", "-ec", `
		ip netns add stranger
		ip link add stranger type veth peer name eth0 netns stranger
		ip link set stranger master zone0 up
		ip -n stranger addr add 10.200.0.99/24 dev eth0
		ip -n stranger link set eth0 up
		ip -n stranger route add default via 10.200.0.1
		nft add element bridge check nodes "{ stranger . 10.200.0.99 }"`)
	t.Cleanup(func() {
		_, _ = run(context.WithoutCancel(t.Context()), "", scripts+"enter", "router", "sh", "-c",
			`ip netns del stranger; nft delete element bridge check nodes "{ stranger . 10.200.0.99 }"`)
	})

	if _, err := execIn(t.Context(), ns, "attacker", forge("from-a-pod", remote.address.String())...); err != nil {
		t.Logf("the attacker isn't even let send: %v", err)
	}
	enter(t, "router", append([]string{"ip", "netns", "exec", "stranger", probeBinary},
		forge("from-a-stranger", remote.address.String())[1:]...)...)
	// This last packet must be accepted. It shows that the packets of this test are valid, and that the earlier packets
	// could have arrived.
	eventually(t, 10*time.Second, "what a node sends arrives", func() error {
		enter(t, neighbour.name, append([]string{probeBinary}, forge("from-a-node", remote.address.String())[1:]...)...)
		if log := kubectl(t, "-n", ns, "logs", "victim"); !strings.Contains(log, "from-a-node") {
			return fmt.Errorf("the victim has seen %q", log)
		}
		return nil
	})
	if log := kubectl(t, "-n", ns, "logs", "victim"); strings.Contains(log, "from-a-pod") ||
		strings.Contains(log, "from-a-stranger") {
		t.Fatalf("the victim has seen %s", log)
	}
}
