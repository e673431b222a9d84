//go:build bench

package bench_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/iptables"
	"github.com/weir-net/weir/netfilter/nftables"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

var podSubnet = netip.MustParsePrefix("10.88.0.0/16")

// localPod returns the address of pod i. Pod 0 is the client, and pod 1 the server.
func localPod(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 88, byte((i + 2) >> 8), byte(i + 2)})
}

var (
	clientAddr = localPod(0)
	serverAddr = localPod(1)
)

// packetNode is a node for measurements. It has its own network namespace and rules, so that a test can measure several
// nodes in turn.
type packetNode struct {
	path           string // the node's network namespace
	client, server string // network namespaces of the pods
	listener       int    // TCP socket of the server
	datagrams      int    // UDP socket of the server
	queue          *queue // gives verdicts in user space; nil if the rules have no queue
	buf            []byte
}

func newPacketNode(t *testing.T, name string, guard bool) *packetNode {
	t.Helper()
	n := &packetNode{
		path:   nodetest.NewNS(t, name),
		client: nodetest.NewNS(t, name+"-client"),
		server: nodetest.NewNS(t, name+"-server"),
		buf:    make([]byte, 64<<10),
	}
	gateway := podSubnet.Addr().Next()
	nodetest.In(t, n.path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		b, err := bridge.Ensure(1500, []netip.Prefix{netip.PrefixFrom(gateway, podSubnet.Bits())})
		if err != nil {
			return err
		}
		for path, addr := range map[string]netip.Addr{n.client: clientAddr, n.server: serverAddr} {
			if err := n.addPod(b, path, endpoint.Address{Addr: addr, Subnet: podSubnet, Gateway: gateway}, guard); err != nil {
				return err
			}
		}
		return nil
	})
	for _, path := range []string{n.client, n.server} {
		nodetest.In(t, path, forgetClosed)
	}
	nodetest.In(t, n.server, func() (err error) {
		if n.listener, err = boundSocket(unix.SOCK_STREAM, serverAddr, 80, idle); err != nil {
			return err
		}
		if n.datagrams, err = boundSocket(unix.SOCK_DGRAM, serverAddr, 80, idle); err != nil {
			return err
		}
		return unix.Listen(n.listener, 4096)
	})
	return n
}

// forgetClosed makes the kernel forget closed connections at once. With many connections in TIME_WAIT, it would need
// longer to find a free port.
//
// Equivalent to: sysctl net.ipv4.tcp_max_tw_buckets=0
func forgetClosed() error {
	return os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("0"), 0)
}

func (n *packetNode) addPod(b *bridge.Bridge, path string, a endpoint.Address, guard bool) error {
	handle, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer func() { _ = handle.Close() }()
	addresses := []endpoint.Address{a}
	port := bridge.Port{
		HostIf: bridge.PortName(path), IfName: "eth0", Netns: handle, MAC: bridge.PodMAC(addresses), Addresses: addresses,
	}
	pair, err := b.AddPort(port)
	if err != nil {
		return err
	}
	if guard {
		if err := bridge.AllowSender(port.Sender()); err != nil {
			return err
		}
	}
	return pair.Start()
}

// newBareNode returns a node that has only the rules of anyNode: they accept established connections, and masquerade
// pods' packets. All nodes in the comparison have these rules.
func newBareNode(t *testing.T, flavour iptables.Flavour, name string, guard bool) *packetNode {
	t.Helper()
	n := newPacketNode(t, name, guard)
	n.write(t, flavour, anyNode())
	return n
}

// backend is the part of agent.Backend that writes rules.
type backend interface {
	Apply(ctx context.Context, want ruleset.Ruleset, verify netfilter.Verify) (netfilter.Result, error)
	Close()
}

// backend opens weir's backend on the node: nftables if native is true, otherwise iptables with the flavour.
func (n *packetNode) backend(t *testing.T, native bool, flavour iptables.Flavour) (b backend) {
	t.Helper()
	nodetest.In(t, n.path, func() error {
		if native {
			b = nftables.New()
			return nil
		}
		d, err := iptables.New(t.Context())
		if err == nil {
			d.Flavour = flavour
		}
		b = d
		return err
	})
	return b
}

func (n *packetNode) enforce(t *testing.T, b backend, s policy.State) {
	t.Helper()
	defer b.Close()
	r := ruleset.Merge(policy.Compile(s), nil)
	for _, p := range r.Problems {
		t.Fatal(p)
	}
	nodetest.In(t, n.path, func() error {
		_, err := b.Apply(t.Context(), r, netfilter.Trust)
		return err
	})
}

type text struct{ sets, rules string }

func (n *packetNode) write(t *testing.T, flavour iptables.Flavour, x text) {
	t.Helper()
	if x.sets != "" {
		n.run(t, x.sets, "ipset restore")
	}
	if x.rules != "" {
		n.run(t, x.rules, "iptables-"+string(flavour)+"-restore --noflush")
	}
}

// run runs a command on the node. It splits the command at spaces, so no argument can contain a space.
func (n *packetNode) run(t *testing.T, input, command string) {
	t.Helper()
	words := strings.Fields(command)
	nodetest.In(t, n.path, func() error {
		cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
		cmd.Stdin = strings.NewReader(input)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %.2000s\n%.2000s", command, err, out, input)
		}
		return nil
	})
}

const bareRule = "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"

func anyNode() text {
	return text{rules: fmt.Sprintf("*filter\n"+bareRule+"COMMIT\n"+
		"*nat\n-A POSTROUTING -s %[1]s ! -d %[1]s -j MASQUERADE\nCOMMIT\n", podSubnet)}
}
