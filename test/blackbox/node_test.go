package blackbox

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weir-net/weir/test/nodetest"
)

// repairTime is how long a repair may take: ten seconds until the agent compares the node with its settings again, and
// fifty more for a busy machine.
const repairTime = 10*time.Second + 50*time.Second

const service = "10.96.0.1:80"

type keptNode struct {
	*nodetest.Node
	client, server *nodetest.Pod
	mustReach      [][2]string // pairs: a network namespace, and an address that must be reached from there
}

const twoPods = `
apiVersion: v1
kind: Namespace
metadata: {name: ns}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: ns}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: ns}
`

func newKeptNode(t *testing.T) *keptNode {
	t.Helper()
	n := &keptNode{Node: nodetest.NewNode(t, nodetest.Conf{
		"ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24"}, nodetest.Conf{"subnet": "fd00:10:88::/64"}},
	})}
	n.Manifest("pods.yaml", twoPods)
	n.StartAgent()
	n.client, n.server = n.AddPod("ns", "client"), n.AddPod("ns", "server")
	n.Serve(n.server.Netns, "tcp", "["+n.server.IP6+"]:80")
	n.Serve(n.server.Netns, "tcp", n.server.IP+":80")
	n.Serve(n.Outside, "tcp", "192.0.2.1:80")
	nodetest.Run(t, "iptables", "-t", "nat", "-A", "PREROUTING", "-d", "10.96.0.1", "-p", "tcp", "--dport", "80",
		"-j", "DNAT", "--to-destination", n.server.IP+":80")
	n.mustReach = [][2]string{
		{n.client.Netns, n.server.IP + ":80"},
		{n.client.Netns, "[" + n.server.IP6 + "]:80"},
		{n.client.Netns, service},
		{n.client.Netns, "192.0.2.1:80"},
		{nodetest.Self, n.server.IP + ":80"},
		{nodetest.Self, "[" + n.server.IP6 + "]:80"},
	}
	if err := within(repairTime, n.traffic); err != nil { // the servers may start slowly
		t.Fatalf("before anything is broken: %v", err)
	}
	return n
}

func (n *keptNode) traffic() error {
	n.Helper()
	for _, way := range n.mustReach {
		if _, err := nodetest.Get(n, way[0], way[1]); err != nil {
			return fmt.Errorf("from %s: %w", way[0], err)
		}
	}
	return nil
}

func portOf(t *testing.T, p *nodetest.Pod) string {
	t.Helper()
	var result struct {
		Interfaces []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(p.Result), &result); err != nil || len(result.Interfaces) != 3 {
		t.Fatalf("the result of ADD: %v: %s", err, p.Result)
	}
	return result.Interfaces[1].Name
}

func metric(t testing.TB, prefix string) (sum float64) {
	t.Helper()
	served, err := metrics()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(served) {
		var v float64
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if _, err := fmt.Sscan(value, &v); err == nil && strings.HasPrefix(series, prefix) {
			sum += v
		}
	}
	return sum
}

func within(d time.Duration, f func() error) error {
	for deadline := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

type damage struct {
	kind string // label of the metric that counts the repair
	// command is a shell command that does the damage. A flush of routes or neighbours fails if the agent or the
	// kernel changes an entry meanwhile, so its exit status is ignored. The count of repairs shows that the command
	// did the damage.
	command string
	mended  string // a shell command that succeeds and prints something when the damage is repaired
}

// comesBack damages the node in each of these ways, one after the other. The agent must repair and report each damage.
func (n *keptNode) comesBack(all []damage) {
	n.Helper()
	for _, d := range all {
		counted := metric(n, `weir_node_repairs_total{kind="`+d.kind+`"}`)
		nodetest.Run(n, "sh", "-c", d.command)
		began := time.Now()
		err := within(repairTime, func() error {
			if out, err := exec.Command("sh", "-c", d.mended).CombinedOutput(); err != nil ||
				strings.TrimSpace(string(out)) == "" {
				return fmt.Errorf("%s: prints nothing (%w): %s", d.mended, err, out)
			}
			return n.traffic()
		})
		if err != nil {
			n.Errorf("%s: not put right: %v", d.command, err)
			return // the next damage would fail for the same reason
		}
		n.Logf("%s: put right after %s", d.command, time.Since(began).Round(10*time.Millisecond))
		if err := within(repairTime, func() error {
			if now := metric(n, `weir_node_repairs_total{kind="`+d.kind+`"}`); now <= counted {
				return fmt.Errorf("weir_node_repairs_total{kind=%q} is %v", d.kind, now)
			}
			return nil
		}); err != nil {
			n.Errorf("%s: not counted: %v", d.command, err)
		}
		if err := within(repairTime, func() error {
			out, err := n.Ctl("status")
			if err == nil && (!strings.Contains(out, "REPAIRED: ") || !strings.Contains(out, " "+d.kind+": ")) {
				return fmt.Errorf("it says nothing of the repair:\n%s", out)
			}
			return err
		}); err != nil {
			n.Errorf("%s: weirctl status: %v", d.command, err)
		}
		if err := within(repairTime, func() error { // the damage may have several parts, which are repaired in turn
			out, err := n.CNI("check", n.server.Netns, nodetest.Args("ns", "server", ""))
			if err != nil {
				err = fmt.Errorf("%w%s", err, out)
			}
			return err
		}); err != nil {
			n.Errorf("%s: CHECK after the repair: %v", d.command, err)
		}
	}
	if !strings.Contains(n.AgentLog(), "another program changed node settings of weir") {
		n.Errorf("the log doesn't tell of repairs")
	}
}

// TestNodeSysctlsComeBack: if another program changes weir's sysctls, the agent sets them again.
func TestNodeSysctlsComeBack(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newKeptNode(t)
	var all []damage
	for _, setting := range []string{
		"net.ipv4.ip_forward=0", "net.ipv4.conf.weir0.forwarding=0", "net.ipv6.conf.all.forwarding=0",
		"net.ipv6.conf.weir0.disable_ipv6=1",
		"net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1",
		"net.ipv4.conf.weir0.send_redirects=1", "net.ipv4.conf.all.send_redirects=1", "net.ipv6.conf.weir0.addr_gen_mode=0",
	} {
		key, _, _ := strings.Cut(setting, "=")
		all = append(all,
			damage{"sysctl", "sysctl -w " + setting, "sysctl " + key + " | grep -v '" + setting[len(setting)-1:] + "$'"})
	}
	n.comesBack(all)
}

// TestNodeBridgeComesBack: if another program changes weir0, its addresses, neighbours or routes, the agent restores
// them.
func TestNodeBridgeComesBack(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newKeptNode(t)
	n.comesBack([]damage{
		{"address", "ip -4 addr flush dev weir0", "ip addr show dev weir0 | grep 10.88.0.1/24"},
		{"address", "ip addr flush dev weir0", "ip addr show dev weir0 | grep fd00:10:88::1/128"},
		{"neighbour", "ip link set weir0 down; ip link set weir0 up", "ip -6 neigh show dev weir0 | grep PERMANENT"},
		{"bridge", "ip link set weir0 down", "ip link show weir0 up | grep weir0"},
		{"route", "ip route flush dev weir0 || true", "ip route show dev weir0 | grep 10.88.0.0/24"},
		{"route", "ip -6 route flush dev weir0 || true", "ip -6 route show dev weir0 | grep fd00:10:88::/64"},
		{"route", "ip route flush table local dev weir0 || true", "ip route show table local dev weir0 | grep 10.88.0.1"},
		{
			"neighbour", "ip neigh flush dev weir0 nud permanent; ip -6 neigh flush dev weir0 nud permanent || true",
			"ip neigh show dev weir0 | grep PERMANENT",
		},
		{
			"neighbour", "ip neigh replace " + n.server.IP + " lladdr 02:00:00:00:00:01 dev weir0 nud permanent",
			"ip neigh show dev weir0 | grep " + n.server.IP + " | grep 0a:58",
		},
		{"bridge", "ip link set weir0 address 02:00:00:00:00:02", "ip link show weir0 | grep 0a:58"},
		{"bridge", "ip link set weir0 mtu 1300", "ip link show weir0 | grep 'mtu 1500'"},
		{"bridge", "ip link set weir0 arp off", "ip link show weir0 | grep -v NOARP"},
		{
			"bridge", "ip link set weir0 type bridge mcast_snooping 1 stp_state 1",
			"ip -d link show weir0 | grep 'stp_state 0.*mcast_snooping 0'",
		},
		{"bridge", "ip link del weir0", "ip link show weir0 up | grep weir0"},
	})
}

// TestNodePortsComeBack: if another program changes a pod's port or forwarding entry, the agent restores it.
func TestNodePortsComeBack(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newKeptNode(t)
	port := portOf(t, n.server)
	n.comesBack([]damage{
		{"port", "ip link set " + port + " down", "ip link show " + port + " up | grep " + port},
		{"port", "ip link set " + port + " nomaster", "ip link show " + port + " | grep 'master weir0'"},
		{
			"port", "ip link add other type bridge; ip link set " + port + " master other",
			"ip link show " + port + " | grep 'master weir0'",
		},
		{
			"port", "bridge link set dev " + port + " isolated off",
			"bridge -d link show dev " + port + " | grep 'isolated on'",
		},
		{
			"port", "bridge link set dev " + port + " learning on flood on",
			"bridge -d link show dev " + port + " | grep 'learning off.* flood off'",
		},
		{"port", "bridge link set dev " + port + " state 0", "bridge link show dev " + port + " | grep 'state forwarding'"},
		{"port", "ip link set " + port + " mtu 1000", "ip link show " + port + " | grep 'mtu 1500'"},
		{
			"forwarding", "for mac in $(bridge fdb show dev " + port +
				" | grep '^0a:58.* static' | cut -d' ' -f1); do bridge fdb del $mac dev " + port + " master; done",
			"bridge fdb show dev " + port + " | grep '^0a:58.* static'",
		},
	})
}

// TestCheckSeesTheNode: if a part of the node that all pods need is damaged, CHECK of a pod fails, and names the part.
func TestCheckSeesTheNode(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newKeptNode(t)
	n.StopAgent()
	check := func() error {
		_, err := n.CNI("check", n.server.Netns, nodetest.Args("ns", "server", ""))
		return err
	}
	if err := check(); err != nil {
		t.Fatalf("before anything is broken: %v", err)
	}
	for _, tc := range []struct{ breakIt, mendIt, says string }{
		{"sysctl -w net.ipv4.ip_forward=0", "sysctl -w net.ipv4.ip_forward=1", "net.ipv4.ip_forward is 0"},
		{
			"sysctl -w net.bridge.bridge-nf-call-iptables=1", "sysctl -w net.bridge.bridge-nf-call-iptables=0",
			"bridge-nf-call-iptables is 1",
		},
		{
			"sysctl -w net.ipv6.conf.all.forwarding=0", "sysctl -w net.ipv6.conf.all.forwarding=1",
			"net.ipv6.conf.all.forwarding is 0",
		},
		{
			"ip route del 10.88.0.0/24 dev weir0", "ip route add 10.88.0.0/24 dev weir0 src 10.88.0.1",
			"the route to 10.88.0.0/24",
		},
		{
			"ip -6 route del fd00:10:88::/64 dev weir0", "ip -6 route add fd00:10:88::/64 dev weir0",
			"the route to fd00:10:88::/64",
		},
		{"ip link set weir0 type bridge stp_state 1", "ip link set weir0 type bridge stp_state 0", "stp_state 1"},
		{
			"ip addr add 10.88.0.7/32 dev weir0; ip addr del 10.88.0.1/24 dev weir0", "ip addr add 10.88.0.1/24 dev weir0",
			"lacks the address 10.88.0.1/24",
		},
	} {
		nodetest.Run(t, "sh", "-c", tc.breakIt)
		if err := check(); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: CHECK says %v, want an error with %q", tc.breakIt, err, tc.says)
		}
		nodetest.Run(t, "sh", "-c", tc.mendIt)
		if err := check(); err != nil {
			t.Fatalf("%s: CHECK says %v", tc.mendIt, err)
		}
	}
}

// TestNodeThatCantBeRepaired: if /proc/sys is read-only, the agent isn't ready, and repairs everything else.
func TestNodeThatCantBeRepaired(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newKeptNode(t)
	// The command makes /proc/sys read-only, and then writes the sysctl through another mount. In the other order, the
	// agent could repair the sysctl in between.
	nodetest.Run(t, "sh", "-c", "set -e; mkdir /run/proc; mount -t proc proc /run/proc; "+
		"mount --bind -o ro /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; "+
		"echo 1 >/run/proc/sys/net/ipv4/conf/weir0/send_redirects")
	nodetest.Run(t, "ip", "addr", "flush", "dev", "weir0")
	if err := within(repairTime, n.traffic); err != nil {
		t.Errorf("the addresses weren't put right beside what can't be: %v", err)
	}
	says := "net.ipv4.conf.weir0.send_redirects is 1"
	if err := within(repairTime, func() error {
		out, err := n.Ctl("status")
		if err == nil || !strings.Contains(out, "ERROR") || !strings.Contains(out, says) {
			return fmt.Errorf("weirctl status: %w\n%s", err, out)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if v := metric(t, `weir_fault{part="node"}`); v != 1 {
		t.Errorf("weir_fault{part=\"node\"} is %v", v)
	}
	if v := metric(t, `weir_node_faults{kind="sysctl"}`); v != 1 {
		t.Errorf("weir_node_faults{kind=\"sysctl\"} is %v", v)
	}
	n.Eventually("no process has a file of /proc/sys open, so that umount succeeds", func() error {
		_, err := nodetest.Try("umount", "/proc/sys")
		return err
	})
	if err := within(repairTime, func() error { _, err := n.Ctl("status"); return err }); err != nil {
		t.Errorf("after it can be put right again: %v", err)
	}
}

// TestGuardRepairsAreCounted: if another program flushes parts of the guard, the agent repairs them, and metrics count
// the repairs.
func TestGuardRepairsAreCounted(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newKeptNode(t)
	port := portOf(t, n.server)
	n.comesBack([]damage{
		{"guard", "nft flush chain bridge weir ports", "nft list chain bridge weir ports | grep drop"},
		{"guard", "nft flush set bridge weir senders4", "nft list set bridge weir senders4 | grep " + port},
	})
}

// TestGuardThatLooksLikeItself: if another program changes a hook, a verdict or a set's type in the guard's tables, but
// no names, the agent repairs the guard.
func TestGuardThatLooksLikeItself(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newKeptNode(t)
	hooked := "nft list chain bridge weir ports | grep 'hook prerouting priority dstnat; policy accept'"
	again := func(table, edit string) string {
		list := "nft list table " + table
		return "(echo delete table " + table + "; " + list + " | sed '" + edit +
			"') > /run/again.nft && nft -f /run/again.nft"
	}
	verdict := func(chain, comment, was, is string) string {
		find := "nft -a list chain " + chain + " | grep '" + comment + "'"
		return "nft replace rule " + chain + " handle $(" + find + " | sed 's/.*handle //') " +
			"$(" + find + " | sed 's/ # handle.*//; s/packets 0 bytes 0//; s/ " + was + " / " + is + " /')"
	}
	n.comesBack([]damage{
		{"guard", again("bridge weir", "s/type filter hook prerouting.*//"), hooked},
		{"guard", again("bridge weir", "s/hook prerouting priority dstnat/hook prerouting priority 300/"), hooked},
		{"guard", again("bridge weir", "s/hook prerouting priority dstnat/hook forward priority 0/"), hooked},
		{"guard", "nft 'chain bridge weir ports { policy drop; }'", hooked},
		{
			"guard", verdict("bridge weir ports", "forged sender", "drop", "accept"),
			"nft list chain bridge weir ports | grep 'forged sender' | grep ' drop '",
		},
		{
			"guard", again("inet weir-ports", "s/type filter hook prerouting.*//"),
			"nft list chain inet weir-ports prerouting | grep 'hook prerouting priority -450'",
		},
		{
			"guard", "nft 'delete table bridge weir; add table bridge weir; add set bridge weir senders4 { type ipv4_addr; }'",
			"nft list set bridge weir senders4 | grep " + portOf(t, n.server),
		},
	})
}

const twoNodes = `
apiVersion: v1
kind: Node
metadata: {name: self}
spec: {podCIDR: 10.88.0.0/24, podCIDRs: [10.88.0.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}
---
apiVersion: v1
kind: Node
metadata: {name: peer}
spec: {podCIDR: 10.88.1.0/24, podCIDRs: [10.88.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
`

// TestNodeOverlayComesBack: if another program changes the tunnel's link, routes or forwarding entries, the agent
// repairs them.
func TestNodeOverlayComesBack(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := &keptNode{Node: nodetest.NewNode(t, nil)}
	n.Manifest("pods.yaml", twoPods)
	n.Manifest("nodes.yaml", twoNodes)
	n.SpawnAgent("--source", "dir:"+n.Manifests, "--node-name", "self")
	n.Eventually("the agent is ready", func() error { _, err := n.Ctl("status"); return err })
	n.client, n.server = n.AddPod("ns", "client"), n.AddPod("ns", "server")
	n.Serve(n.server.Netns, "tcp", n.server.IP+":80")
	nodetest.RunEach(t,
		"ip -n outside addr add 10.88.1.5/32 dev lo",
		"ip -n outside link add vx address 0e:58:c0:00:02:01 mtu 1450 type vxlan id 88 local 192.0.2.1 dstport 4789 "+
			"nolearning",
		"ip -n outside link set vx up",
		"bridge -n outside fdb add 0e:58:c0:00:02:02 dev vx dst 192.0.2.2 self permanent",
		"ip -n outside neigh add 10.88.0.0 lladdr 0e:58:c0:00:02:02 dev vx nud permanent",
		"ip -n outside route add 10.88.0.0/24 via 10.88.0.0 dev vx onlink src 10.88.1.5",
	)
	n.Serve(n.Outside, "tcp", "10.88.1.5:80")
	n.mustReach = [][2]string{
		{n.client.Netns, "10.88.1.5:80"},
		{nodetest.Self, "10.88.1.5:80"},
		{n.Outside, n.server.IP + ":80"},
	}
	if err := within(repairTime, n.traffic); err != nil {
		t.Fatalf("before anything is broken: %v", err)
	}
	n.comesBack([]damage{
		{"overlay", "ip link set weir-vxlan down", "ip link show weir-vxlan up | grep weir-vxlan"},
		{"overlay", "ip link del weir-vxlan", "ip link show weir-vxlan up | grep weir-vxlan"},
		{"overlay", "ip route flush proto 88 || true", "ip route show proto 88 | grep 10.88.1.0/24"},
		{"overlay", "ip neigh flush dev weir-vxlan nud permanent || true", "ip neigh show dev weir-vxlan | grep PERMANENT"},
		{
			"overlay", "bridge fdb del 0e:58:c0:00:02:01 dev weir-vxlan dst 192.0.2.1",
			"bridge fdb show dev weir-vxlan | grep 192.0.2.1",
		},
		{"overlay", "ip addr flush dev weir-vxlan", "ip addr show dev weir-vxlan | grep inet"},
		{
			"sysctl", "sysctl -w net.ipv4.conf.weir-vxlan.forwarding=0",
			"sysctl net.ipv4.conf.weir-vxlan.forwarding | grep '1$'",
		},
	})
}

// TestAnotherNetworksSubnet: if the bridge of an earlier pod network, such as Flannel's cni0, has the same subnet as
// weir0, and the route to this bridge comes first, weirctl status names the bridge. After the bridge is deleted, pods
// reach each other, and the agent is ready.
func TestAnotherNetworksSubnet(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	nodetest.RunEach(t, "ip link add cni0 type bridge", "ip addr add 10.88.0.1/24 dev cni0", "ip link set cni0 up")
	n.Manifest("pods.yaml", pods("quiet", "server", "client"))
	n.StartAgent()
	server, client := n.AddPod("quiet", "server"), n.AddPod("quiet", "client")
	n.Serve(server.Netns, "tcp", ":80")
	const says = "the route to 10.88.0.0/24 by weir0 isn't used: another route to it comes first: it leads to cni0"
	n.Eventually("weirctl status names cni0", func() error {
		out, err := n.Ctl("status")
		if err == nil || !strings.Contains(out, says) {
			return fmt.Errorf("it doesn't: %w\n%s", err, out)
		}
		return nil
	})
	nodetest.RunEach(t, "ip link del cni0")
	n.Reach(client, server.IP+":80", true)
	n.Eventually("the agent is ready", func() error {
		_, err := n.Ctl("status")
		return err
	})
}
