package blackbox

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-net/weir/test/nodetest"
)

func secondNetwork(t *testing.T, n *nodetest.Node, conf nodetest.Conf) {
	t.Helper()
	plugin := nodetest.Conf{"type": "weir"}
	for k, v := range conf {
		plugin[k] = v
	}
	list, err := json.Marshal(nodetest.Conf{"cniVersion": "1.0.0", "name": "second", "plugins": []any{plugin}})
	if err == nil {
		err = os.WriteFile(filepath.Join(n.ConfDir, "20-second.conflist"), list, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func attachSecond(n *nodetest.Node, verb string, p *nodetest.Pod) (string, error) {
	cmd := exec.Command(filepath.Join(n.Bin, "cnitool"), verb, "second", p.Netns)
	cmd.Env = append(os.Environ(), "CNI_PATH="+n.Bin, "NETCONFPATH="+n.ConfDir, "CNI_IFNAME=net1",
		"CNI_ARGS="+nodetest.Args(p.Namespace, p.Name, ""))
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("cnitool %s: %w: %s", verb, err, out)
	}
	return string(out), err
}

func secondAddresses(t *testing.T, result string) (all []string) {
	t.Helper()
	var r struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal([]byte(result), &r); err != nil {
		t.Fatalf("the plugin printed %q: %v", result, err)
	}
	for _, ip := range r.IPs {
		addr, _, _ := strings.Cut(ip.Address, "/")
		all = append(all, addr)
	}
	return all
}

// TestASecondInterface: if pods have a second interface, policies apply to both interfaces.
func TestASecondInterface(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, dualStack)
	n.Manifest("pods.yaml", pods("quiet", "server", "client"))
	n.StartAgent()
	secondNetwork(
		t,
		n,
		nodetest.Conf{"ranges": []any{nodetest.Conf{"subnet": "10.99.0.0/24"}, nodetest.Conf{"subnet": "fd00:10:99::/64"}}},
	)
	server, client := n.AddPod("quiet", "server"), n.AddPod("quiet", "client")
	secondOf := map[*nodetest.Pod][]string{}
	for _, p := range []*nodetest.Pod{server, client} {
		result, err := attachSecond(n, "add", p)
		if err != nil {
			t.Fatalf("a second interface: %v", err)
		}
		secondOf[p] = secondAddresses(t, result)
		if _, err := attachSecond(n, "check", p); err != nil {
			t.Error(err)
		}
	}
	n.Serve(server.Netns, "tcp", "[::]:80")
	outside := func() []string { return []string{n.Outside, client.Netns, nodetest.Self} }
	nodetest.Run(t, "ip", "-n", "outside", "route", "add", "10.0.0.0/8", "via", "192.0.2.2")
	nodetest.Run(t, "ip", "-n", "outside", "-6", "route", "add", "fd00::/16", "via", "2001:db8::2")

	first := []string{server.IP, server.IP6}
	reached := func(addresses []string, want bool, from ...string) {
		t.Helper()
		for _, ns := range from {
			for _, addr := range addresses {
				n.ReachFrom(ns, net.JoinHostPort(addr, "80"), want)
			}
		}
	}
	reached(append(secondOf[server], first...), true, outside()...)
	if seen := nodetest.Greeting(t, client.Netns, net.JoinHostPort(secondOf[server][0], "80")); seen !=
		"hello ::ffff:"+secondOf[client][0] && seen != "hello "+secondOf[client][0] {
		t.Errorf("in the second network the client is seen as %q, want its address there, %s", seen, secondOf[client][0])
	}

	n.Manifest("deny.yaml", strings.ReplaceAll(denyAll, "hostile", "quiet"))
	reached(append(secondOf[server], first...), false, n.Outside, client.Netns)
	n.Manifest("deny.yaml", "")
	reached(append(secondOf[server], first...), true, n.Outside)

	if _, err := attachSecond(n, "del", server); err != nil {
		t.Fatal(err)
	}
	reached(first, true, outside()...)
	reached(secondOf[server], false, n.Outside)
	result, err := attachSecond(n, "add", server)
	if err != nil {
		t.Fatalf("a second interface, again: %v", err)
	}
	reached(secondAddresses(t, result), true, outside()...)
	reached(first, true, outside()...)
}

// TestASecondInterfaceInTheSameNetwork: if a pod has two interfaces in the same network, both addresses can be reached.
func TestASecondInterfaceInTheSameNetwork(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", pods("quiet", "server", "client"))
	n.StartAgent()
	secondNetwork(t, n, nodetest.Conf{"ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24"}}})
	server, client := n.AddPod("quiet", "server"), n.AddPod("quiet", "client")
	result, err := attachSecond(n, "add", server)
	if err != nil {
		t.Fatalf("a second interface: %v", err)
	}
	n.Serve(server.Netns, "tcp", ":80")
	for _, addr := range append(secondAddresses(t, result), server.IP) {
		n.Reach(client, net.JoinHostPort(addr, "80"), true)
	}
}

// TestASecondDefaultRouteThatIsAskedFor: ADD refuses a second default route without a priority, and accepts it with a
// priority.
func TestASecondDefaultRouteThatIsAskedFor(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("pods.yaml", pods("quiet", "server"))
	n.StartAgent()
	server := n.AddPod("quiet", "server")
	ranges := []any{nodetest.Conf{"subnet": "10.99.0.0/24"}}
	secondNetwork(t, n, nodetest.Conf{"ranges": ranges, "routes": []any{nodetest.Conf{"dst": "0.0.0.0/0"}}})
	if _, err := attachSecond(n, "add", server); err == nil || !strings.Contains(err.Error(), "give the routes") {
		t.Errorf("a second default route: %v, want an error that says what to write", err)
	}
	secondNetwork(t, n,
		nodetest.Conf{"ranges": ranges, "routes": []any{nodetest.Conf{"dst": "0.0.0.0/0", "priority": 100}}})
	if _, err := attachSecond(n, "add", server); err != nil {
		t.Errorf("a second default route with a priority: %v", err)
	}
}
