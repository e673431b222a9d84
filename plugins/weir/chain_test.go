package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/bridge"
	"github.com/weir-net/weir/test/nodetest"
)

// TestAheadOfTheOfficialPlugins: if CNI's own plugins come after weir in the list of plugins, those plugins and the
// policies work.
func TestAheadOfTheOfficialPlugins(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "meta/bandwidth", "meta/tuning", "meta/sbr") {
		return
	}
	n := newNode(t, nil)
	before := leftovers(t)
	n.ConfigureList(
		nodetest.Conf{"type": "weir", "ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24"}}},
		nodetest.Conf{"type": "portmap", "capabilities": nodetest.Conf{"portMappings": true}},
		nodetest.Conf{"type": "bandwidth", "capabilities": nodetest.Conf{"bandwidth": true}},
		nodetest.Conf{"type": "tuning", "sysctl": nodetest.Conf{"net.core.somaxconn": "500"}, "mtu": 1400},
		nodetest.Conf{"type": "sbr"},
	)
	const capabilities = `CAP_ARGS={"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],` +
		`"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":8000000,"egressBurst":800000}}`
	server, client := n.AddPod("ns-1", "http-echo", capabilities), n.AddPod("ns-1", "busybox")
	for _, c := range []struct{ command, want string }{
		{"ip -n ns-1.http-echo link show eth0", "mtu 1400"},
		{"ip netns exec ns-1.http-echo sysctl net.core.somaxconn", "= 500"},
		{"ip -n ns-1.http-echo rule", "from " + server.IP},
		{"ip -n ns-1.http-echo route show table 100", "default via 10.88.0.1"},
		{"tc qdisc", "tbf"},
	} {
		f := strings.Fields(c.command)
		if out := nodetest.Run(t, f[0], f[1:]...); !strings.Contains(out, c.want) {
			t.Errorf("%s: no %q in\n%s", c.command, c.want, out)
		}
	}
	n.Serve(server.Netns, "tcp", ":80")
	reach := func(want bool) {
		t.Helper()
		n.Eventually(fmt.Sprint("the client reaches the server: ", want), func() (err error) {
			nodetest.In(t, client.Netns, func() error { // with sbr, the pod has routes only from its own address
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client.IP)}, Timeout: 250 * time.Millisecond}
				var conn net.Conn
				if conn, err = d.Dial("tcp", server.IP+":80"); err == nil {
					_ = conn.Close()
				}
				return nil
			})
			if (err == nil) != want {
				return fmt.Errorf("got %w", err)
			}
			return nil
		})
	}
	reach(true)
	n.ReachFrom(n.Outside, "192.0.2.2:8080", true)
	n.Manifest("policy.yaml", denyAll)
	reach(false)
	n.ReachFrom(n.Outside, "192.0.2.2:8080", false)
	if out, err := n.CNI("check", server.Netns, nodetest.Args("ns-1", "http-echo", ""), capabilities); err != nil {
		t.Errorf("check: %s, %v", out, err)
	}
	for _, p := range []*nodetest.Pod{server, client} {
		if _, err := n.CNI("del", p.Netns, nodetest.Args(p.Namespace, p.Name, ""), capabilities); err != nil {
			t.Error(err)
		}
	}
	n.Manifest("policy.yaml", "# none\n")
	n.Eventually("nothing is left", func() error {
		if diff := leftBehind(t, before); diff != "" {
			return fmt.Errorf("before and after: %s", diff)
		}
		return nil
	})
}

var others = map[string]nodetest.Conf{
	"ptp":    {"type": "ptp", "ipam": hostLocal},
	"bridge": {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": hostLocal},
}

var hostLocal = nodetest.Conf{
	"type": "host-local", "ranges": []any{[]any{nodetest.Conf{"subnet": "10.99.0.0/24"}}},
	"routes": []any{nodetest.Conf{"dst": "0.0.0.0/0"}},
}

func newNodeBehind(t *testing.T, other string, conf nodetest.Conf) *nodetest.Node {
	t.Helper()
	n := nodetest.NewNode(t, nil)
	n.Manifest("cluster.yaml", cluster)
	weir := nodetest.Conf{"type": "weir"}
	for k, v := range conf {
		weir[k] = v
	}
	n.ConfigureList(others[other], weir)
	nodetest.Run(t, "ip", "-n", "outside", "route", "add", "10.99.0.0/24", "via", "192.0.2.2")
	return n
}

func TestBehindPtp(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	testBehind(t, "ptp")
}

func TestBehindBridge(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/bridge", "ipam/host-local") {
		return
	}
	// The bridge weir0 needs the sysctl bridge-nf-call-iptables to be 0. So weir must leave the sysctl at 0, and
	// instead set nf_call_iptables of the other plugin's bridge to 1.
	if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	testBehind(t, "bridge")
}

// ended calls DEL, as a runtime does when a pod has ended. A runtime also calls DEL for a pod that ADD has refused,
// because the plugin before weir has made the pod's interface.
func ended(n *nodetest.Node, namespace, name string) {
	n.Helper()
	if _, err := n.CNI("del", "/run/netns/"+namespace+"."+name, nodetest.Args(namespace, name, "")); err != nil {
		n.Fatal(err)
	}
}

func closedByItsRecord(n *nodetest.Node, pod *nodetest.Pod) {
	n.Helper()
	records, err := filepath.Glob("/run/weir/endpoints/*:eth0.json")
	records = slices.DeleteFunc(records, func(path string) bool {
		text, err := os.ReadFile(path)
		return err != nil || !strings.Contains(string(text), `"name":"`+pod.Name+`"`)
	})
	if err != nil || len(records) != 1 {
		n.Fatalf("records of %s: %v, %v", pod.Name, records, err)
	}
	whole, err := os.ReadFile(records[0])
	if err != nil {
		n.Fatal(err)
	}
	for _, record := range []struct {
		text    []byte
		reaches bool
	}{{whole, true}, {[]byte("{"), false}, {whole, true}} {
		if err := os.WriteFile(records[0], record.text, 0o600); err != nil {
			n.Fatal(err)
		}
		n.Reach(pod, "192.0.2.1:80", record.reaches)
	}
}

// testBehind: if another plugin makes a pod's interface, policies apply in both directions.
func testBehind(t *testing.T, other string) {
	n := newNodeBehind(t, other, nil)
	wantNothing := leftovers(t)
	if _, err := n.TryAddPod("ns-1", "busybox"); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Fatalf("without an agent: %v", err)
	}
	ended(n, "ns-1", "busybox")
	n.Eventually("nothing is left", func() error {
		if diff := cmp.Diff(wantNothing, leftovers(t)); diff != "" {
			return fmt.Errorf("a refused pod left behind: %s", diff)
		}
		return nil
	})
	n.StartAgent()
	nothing := leftovers(t)
	for i := range 8 { // as if packets to the pods' addresses had come before weir was called
		nodetest.Run(t, "conntrack", "-I", "-p", "udp", "-s", "192.0.2.9", "-d", fmt.Sprint("10.99.0.", 2+i), "--sport",
			"4000", "--dport", "53", "-t", "600")
	}
	server, client, stranger := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox"), n.AddPod("ns-2", "other")
	if table := nodetest.Run(t, "conntrack", "-L", "-s", "192.0.2.9"); strings.Count(table, "dst=10.99.0.") != 5 ||
		strings.Contains(table, "dst="+server.IP+" ") {
		t.Errorf("of eight connections those of three pods are to be forgotten:\n%s", table)
	}
	if !strings.HasPrefix(server.IP, "10.99.0.") || strings.Contains(server.Result, "weirp") {
		t.Errorf("the result isn't the other plugin's: %s", server.Result)
	}
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(n.Outside, "tcp", ":80")
	n.Reach(client, server.IP+":80", true)
	if got := nodetest.Greeting(t, client.Netns, "192.0.2.1:80"); got != "hello "+client.IP {
		t.Errorf("a server outside sees %q; want the pod's own address: masquerading is the other plugin's", got)
	}
	if out := nodetest.Run(t, "ip", "-o", "link"); strings.Contains(out, "weirp") {
		t.Errorf("weir has made a link:\n%s", out)
	}
	n.Manifest("policy.yaml", denyAll)
	n.Reach(client, server.IP+":80", false)
	allowed := strings.Replace(allow, "app: busybox", "run: busybox", 1)
	n.Manifest("policy.yaml", allowed)
	n.Reach(client, server.IP+":80", true)
	n.Manifest("policy.yaml", allowed+"---"+egressOnly)
	n.Reach(client, server.IP+":80", false)
	n.Manifest("policy.yaml", allowed)
	n.Reach(client, server.IP+":80", true)
	n.Reach(stranger, server.IP+":80", false)
	n.ReachFrom(nodetest.Self, server.IP+":80", true)
	closedByItsRecord(n, stranger)

	check := func() error {
		_, err := n.CNI("check", server.Netns, nodetest.Args("ns-1", "http-echo", ""))
		return err
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	n.KillAgent() // the agent would repair what the test now breaks
	breaks := map[string][2]string{
		nodetest.PodSet: {nodetest.TakeOutOf(nodetest.PodSet, server.IP), nodetest.PutInto(nodetest.PodSet, server.IP)},
	}
	if other == "bridge" {
		breaks["nf_call_iptables"] = [2]string{"ip link set cni0 type bridge nf_call_iptables 0", "true"}
		breaks["weir-link-local"] = [2]string{"nft flush set bridge weir-link-local ports", "true"}
	}
	for words, commands := range breaks {
		f := strings.Fields(commands[0])
		nodetest.Run(t, f[0], f[1:]...)
		if err := check(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("after %s: %v", commands[0], err)
		}
		f = strings.Fields(commands[1])
		nodetest.Run(t, f[0], f[1:]...)
	}
	nodetest.Run(t, "ip", "-n", "ns-1.busybox", "link", "del", "eth0") // the pod ends, and no runtime calls DEL
	n.StartAgent()
	n.Reach(stranger, server.IP+":80", false)
	if err := check(); err != nil {
		t.Errorf("the agent hasn't put it right: %v", err)
	}
	n.Eventually("the agent has taken out the pod that is over", func() error {
		if out, err := nodetest.ListSets(); err != nil || strings.Contains(out, client.IP+" ") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	n.KillAgent()
	for _, p := range []*nodetest.Pod{server, client, stranger} {
		for range 2 {
			if _, err := n.CNI("del", p.Netns, nodetest.Args(p.Namespace, p.Name, "")); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.Manifest("policy.yaml", "# none\n")
	n.StartAgent()
	n.Eventually("nothing is left", func() error {
		if diff := cmp.Diff(nothing, leftovers(t)); diff != "" {
			return fmt.Errorf("before and after: %s", diff)
		}
		return nil
	})
}

func TestClosedBehindPtp(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	testClosedBehind(t, "ptp")
}

func TestClosedBehindBridge(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/bridge", "ipam/host-local") {
		return
	}
	testClosedBehind(t, "bridge")
}

// testClosedBehind: if enforcement is closed, pods behind another plugin start without an agent, and their new
// connections are dropped until an agent runs. ADD refuses these pods if no agent has ever run on the node, because
// no rule would drop their packets.
func testClosedBehind(t *testing.T, other string) {
	n := newNodeBehind(t, other, nodetest.Conf{"enforcement": "closed"})
	if _, err := n.TryAddPod("ns-1", "http-echo"); err == nil ||
		!strings.Contains(err.Error(), "no rule uses ipset weir-pods") {
		t.Fatalf("no agent has ever run, so nothing closes the pod: %v", err)
	}
	ended(n, "ns-1", "http-echo")
	n.StartAgent()
	server := n.AddPod("ns-1", "http-echo")
	n.Serve(server.Netns, "tcp", ":80")
	n.KillAgent()
	client := n.AddPod("ns-1", "busybox")
	n.Serve(client.Netns, "tcp", ":80")
	for range 3 {
		if _, err := nodetest.Get(t, client.Netns, server.IP+":80"); err == nil {
			t.Error("a pod is open that no agent has enrolled")
		}
		if _, err := nodetest.Get(t, server.Netns, client.IP+":80"); err == nil {
			t.Error("a pod is reached that no agent has enrolled")
		}
	}
	n.StartAgent()
	n.Reach(client, server.IP+":80", true)
	n.Reach(server, client.IP+":80", true)
}

// TestAnAddressThatAnotherPluginGivesAgain: if a new pod gets the address of an old pod whose DEL hasn't come yet,
// the new pod isn't in the old pod's class. The late DEL leaves the address in weir-pods, the set of all pods'
// addresses. So the new pod's packets are still checked.
func TestAnAddressThatAnotherPluginGivesAgain(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := newNodeBehind(t, "ptp", nodetest.Conf{"enforcement": "closed"})
	n.ConfigureList(nodetest.Conf{"type": "ptp", "ipam": nodetest.Conf{
		"type": "host-local", "ranges": []any{[]any{nodetest.Conf{"subnet": "10.99.0.0/24", "rangeEnd": "10.99.0.2"}}},
		"routes": []any{nodetest.Conf{"dst": "0.0.0.0/0"}},
	}}, nodetest.Conf{"type": "weir", "enforcement": "closed"})
	n.StartAgent()
	first := n.AddPod("ns-1", "http-echo")
	in := func(set string) bool {
		if nodetest.Nftables() {
			return exec.Command("nft", "get", "element", "ip", "weir", set, "{ "+first.IP+" }").Run() == nil
		}
		return exec.Command("ipset", "test", set, first.IP).Run() == nil
	}
	if !in("weir-in") || !in("weir-pods") {
		t.Fatal("the first pod is in no class")
	}
	n.KillAgent()
	if err := os.Remove("/var/lib/cni/networks/weir/" + first.IP); err != nil {
		t.Fatal(err)
	}
	nodetest.Run(t, "ip", "-n", "ns-1.http-echo", "link", "del", "eth0")
	second := n.AddPod("ns-2", "other")
	if second.IP != first.IP {
		t.Fatalf("the second pod has %s, not %s", second.IP, first.IP)
	}
	if in("weir-in") || !in("weir-pods") {
		t.Error("the second pod is where the first one was")
	}
	ended(n, "ns-1", "http-echo") // DEL of the first pod comes late
	if !in("weir-pods") {
		t.Error("the first pod's end has opened the second")
	}
	ended(n, "ns-2", "other")
	// As if an agent had read the second pod's record before DEL, changed the sets after DEL, and then been killed.
	stale := strings.Fields(nodetest.PutInto("weir-in", first.IP))
	nodetest.Run(t, stale[0], stale[1:]...)
	if third := n.AddPod("ns-1", "busybox"); third.IP != first.IP || in("weir-in") || !in("weir-pods") {
		t.Errorf("the third pod, with %s, is in the class of an ended one", third.IP)
	}
}

// TestAPodThatRunsOnBehindPtp: if GC or weir's DEL ends the attachment of a pod that still runs, weir sets the pod's
// link down, because no rule checks the pod's packets any more. DEL also does this if the record is damaged.
func TestAPodThatRunsOnBehindPtp(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	testRunsOnBehind(t, "ptp")
}

func TestAPodThatRunsOnBehindBridge(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/bridge", "ipam/host-local") {
		return
	}
	testRunsOnBehind(t, "bridge")
}

func testRunsOnBehind(t *testing.T, other string) {
	n := newNodeBehind(t, other, nil)
	n.Manifest("policy.yaml", denyAll)
	n.StartAgent()
	for i, c := range []struct{ verb, pod, record string }{
		{"DEL", "http-echo", ""},
		{"GC", "busybox", ""},
		// The command puts /unseen before the path of the network namespace in the record. No such path exists.
		{"GC", "http-echo", `sed -i 's|"netns":"|&/unseen|' `},
		{"DEL", "busybox", "echo { >"},
	} {
		pod, port := n.AddPod("ns-1", c.pod), fmt.Sprint(":", 80+i)
		n.Serve(pod.Netns, "tcp", port)
		n.ReachFrom(n.Outside, pod.IP+port, false)
		records, err := filepath.Glob("/run/weir/endpoints/*:eth0.json")
		if err != nil || len(records) != 1 {
			t.Fatal(records, err)
		}
		id, _, _ := strings.Cut(filepath.Base(records[0]), ":")
		env := map[string]string{
			"CNI_COMMAND": c.verb, "CNI_CONTAINERID": id, "CNI_NETNS": pod.Netns, "CNI_IFNAME": "eth0", "CNI_PATH": n.Bin,
		}
		if c.record != "" {
			nodetest.Run(t, "sh", "-c", c.record+records[0])
		}
		if code, msg := weir(t, n, env, `{"cniVersion": "1.1.0", "name": "weir", "type": "weir"}`); code != 0 {
			t.Fatalf("%s: code %d: %s", c.verb, code, msg)
		}
		if _, err := nodetest.Get(t, n.Outside, pod.IP+port); err == nil {
			t.Errorf("after %s with the record %q, the pod is reached although a policy forbids it", c.verb, c.record)
		}
		if out := nodetest.Run(t, "sh", "-c", "cd /run/weir; find endpoints addresses -mindepth 1"); out != "" {
			t.Errorf("after %s with the record %q, these files are left: %s", c.verb, c.record, out)
		}
		ended(n, pod.Namespace, pod.Name) // calls the other plugin's DEL too
	}
}

// reachedPods adds a server and a client. It returns once two connections to the server work: from outside by IPv4, and
// from the client by IPv6.
func reachedPods(t *testing.T, n *nodetest.Node) (server, client *nodetest.Pod) {
	t.Helper()
	server, client = n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp4", ":80")
	n.Serve(server.Netns, "tcp6", ":80")
	n.ReachFrom(n.Outside, server.IP+":80", true)
	n.Reach(client, "["+server.IP6+"]:80", true)
	return server, client
}

// TestLostRecordsBehindPtp: if the records of running pods are lost, the agent and GC leave the pods closed. When such
// a pod has ended, the agent takes the pod's address out of the sets.
func TestLostRecordsBehindPtp(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := newNodeBehindDualStack(t, "ptp")
	n.StartAgent()
	server, client := reachedPods(t, n)
	nodetest.Run(t, "sh", "-c", "rm /run/weir/endpoints/* /run/weir/addresses/*")
	closed := func(when string) {
		t.Helper()
		if _, err := nodetest.Get(t, n.Outside, server.IP+":80"); err == nil {
			t.Errorf("%s, a pod without a record is reached", when)
		}
		// No record has an IPv6 address any more, but the rules for IPv6 must stay.
		if _, err := nodetest.Get(t, client.Netns, "["+server.IP6+"]:80"); err == nil {
			t.Errorf("%s, a pod without a record is reached by IPv6", when)
		}
	}
	n.Eventually("the agent reports the pod", func() error {
		if !strings.Contains(n.AgentLog(), "their pods stay closed") {
			return errors.New("it doesn't")
		}
		return nil
	})
	closed("after the agent has looked for addresses of no pod")
	env := map[string]string{
		"CNI_COMMAND": "GC", "CNI_CONTAINERID": "x", "CNI_NETNS": server.Netns, "CNI_IFNAME": "eth0", "CNI_PATH": n.Bin,
	}
	if code, msg := weir(t, n, env, `{"cniVersion": "1.1.0", "name": "weir", "type": "weir"}`); code != 0 {
		t.Fatalf("GC: code %d: %s", code, msg)
	}
	closed("after GC")
	nodetest.Run(t, "ip", "-n", "ns-1.http-echo", "link", "del", "eth0")
	n.Eventually("the address is taken out once no namespace has it", func() error {
		if out, err := nodetest.ListSets(); err != nil || strings.Contains(out, server.IP+" ") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// TestMovesWithLostRecords: if the records of running pods are lost, the pods stay closed when the agent moves to the
// other backend, and back. Without records, only the old backend's sets have these pods' addresses, and the agent
// removes these sets after the move.
func TestMovesWithLostRecords(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := newNodeBehindDualStack(t, "ptp")
	start := func(backend string) {
		t.Helper()
		n.SpawnAgent("--source", "dir:"+n.Manifests, "--backend", backend)
		n.Eventually("the agent uses "+backend+", and has removed the other backend's sets", func() error {
			name, err := os.ReadFile("/run/weir/lock")
			if string(name) != backend {
				return fmt.Errorf("%s: %w", name, err)
			}
			_, err = n.Ctl("status")
			return err
		})
	}
	start("iptables")
	server, client := reachedPods(t, n)
	nodetest.Run(t, "sh", "-c", "rm /run/weir/endpoints/* /run/weir/addresses/*")
	for _, backend := range []string{"nftables", "iptables"} {
		n.StopAgent()
		start(backend)
		if _, err := nodetest.Get(t, n.Outside, server.IP+":80"); err == nil {
			t.Errorf("with %s, a pod without a record is reached", backend)
		}
		if _, err := nodetest.Get(t, client.Netns, "["+server.IP6+"]:80"); err == nil {
			t.Errorf("with %s, a pod without a record is reached by IPv6", backend)
		}
	}
}

// TestPolicyThatCantHoldIsRefused: ADD refuses a pod whose packets would bypass the FORWARD hook. It also refuses
// an interface, a prevResult or a configuration with which weir can't enforce policy behind another plugin.
func TestPolicyThatCantHoldIsRefused(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/bridge", "ipam/host-local") {
		return
	}
	n := newNodeBehind(t, "bridge", nil)
	n.StartAgent()
	nodetest.Run(t, "mount", "-t", "tmpfs", "none", "/proc/sys/net/bridge") // as if br_netfilter weren't loaded
	if _, err := n.TryAddPod("ns-1", "busybox"); err == nil || !strings.Contains(err.Error(), "modprobe br_netfilter") {
		t.Errorf("behind a bridge without br_netfilter: %v", err)
	}
	nodetest.Run(t, "umount", "/proc/sys/net/bridge")

	for i, tc := range []struct {
		setUp       string
		ips, beside string
		code        uint
		words       string
	}{
		{
			setUp: "ip -n pod link add eth0 type bridge",
			ips:   "10.99.0.9/24",
			code:  7,
			words: "prevResult: eth0 in the pod is of type bridge",
		},
		{
			setUp: "ip -n pod link add eth0 type veth peer name inner",
			ips:   "10.99.0.9/24",
			code:  7,
			words: "a veth that doesn't end on the node",
		},
		{
			setUp: "ip link add out type veth peer name eth0 netns pod",
			ips:   "127.0.0.1/8",
			code:  7,
			words: "prevResult.ips[0].address: 127.0.0.1",
		},
		{setUp: "true", ips: "", code: 7, words: "prevResult.ips: there is no address"},
		{
			setUp:  "true",
			ips:    "10.99.0.9/24",
			beside: `"ranges": [{"subnet": "10.88.0.0/24"}], `,
			code:   7,
			words:  "ranges: weir comes after another plugin in the list",
		},
		{setUp: "ip link add out type veth peer name eth0 netns pod", ips: "10.99.0.9/24", code: 0, words: "/run/netns/pod"},
	} {
		netns := nodetest.NewNS(t, "pod")
		f := strings.Fields(tc.setUp)
		nodetest.Run(t, f[0], f[1:]...)
		ips := "[]"
		if tc.ips != "" {
			ips = fmt.Sprintf(`[{"address": "%s", "interface": 0}]`, tc.ips)
		}
		before := leftovers(t)
		env := map[string]string{
			"CNI_COMMAND": "ADD", "CNI_CONTAINERID": fmt.Sprint("c", i), "CNI_NETNS": netns, "CNI_IFNAME": "eth0",
			"CNI_PATH": n.Bin,
			"CNI_ARGS": nodetest.Args("ns-1", "busybox", ""),
		}
		stdin := `{"cniVersion": "1.0.0", "name": "weir", "type": "weir", ` + tc.beside +
			`"prevResult": {"cniVersion": "1.0.0", ` +
			`"interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:09", "sandbox": "` + netns + `"}], "ips": ` + ips + "}}"
		code, msg := weir(t, n, env, stdin)
		if code != tc.code || !strings.Contains(msg, tc.words) {
			t.Errorf("%s, %q: code %d: %s; want code %d with %q", tc.setUp, tc.ips, code, msg, tc.code, tc.words)
		}
		if tc.code == 0 {
			env["CNI_COMMAND"] = "DEL"
			if code, msg := weir(t, n, env, stdin); code != 0 {
				t.Errorf("DEL: code %d: %s", code, msg)
			}
		}
		if diff := leftBehind(t, before); diff != "" {
			t.Errorf("left behind: %s", diff)
		}
		nodetest.Run(t, "sh", "-c", "ip link del out 2>/dev/null; ip -n pod link del eth0 2>/dev/null; true")
		nodetest.DelNS(t, netns)
	}
}

// TestANodeGoesOverFromHostLocal: if a node changes from host-local to weir, weir doesn't assign a running pod's
// address to another pod. After the running pod has ended, weir assigns the address.
func TestANodeGoesOverFromHostLocal(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("cluster.yaml", cluster)
	n.StartAgent()
	n.ConfigureList(others["ptp"])
	n.AddPod("ns-1", "http-echo")
	files, err := filepath.Glob("/var/lib/cni/networks/weir/10.99.0.*")
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	old := filepath.Base(files[0])
	ago := time.Now().Add(-5 * time.Minute)
	if err := os.Chtimes(files[0], ago, ago); err != nil {
		t.Fatal(err)
	}
	n.Configure(nodetest.Conf{"ranges": []any{nodetest.Conf{"subnet": "10.99.0.0/24", "rangeEnd": "10.99.0.3"}}})
	if p := n.AddPod("ns-1", "busybox"); p.IP == old {
		t.Errorf("%s is that of a pod that lives", p.IP)
	}
	if _, err := n.TryAddPod("ns-2", "other"); err == nil || !strings.Contains(err.Error(), "no free address") {
		t.Errorf("only the old pod's address is left: %v", err)
	}
	nodetest.Run(t, "ip", "-n", "ns-1.http-echo", "link", "del", "eth0") // the old pod ends
	if p := n.AddPod("ns-2", "other"); p.IP != old {
		t.Errorf("got %s, but only %s is free", p.IP, old)
	}
}

// TestWhatARuntimeAsksFor: if the runtime requests an address, a MAC, ranges or DNS, the pod gets them. ADD refuses an
// address or a MAC that is in use, and an address outside of the ranges.
func TestWhatARuntimeAsksFor(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	n.ConfigureList(nodetest.Conf{
		"type": "weir", "ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24", "exclude": []string{"10.88.0.2/31"}}},
		"capabilities": nodetest.Conf{"ips": true, "mac": true, "dns": true, "ipRanges": true},
		"routes": []any{
			nodetest.Conf{"dst": "0.0.0.0/0", "mtu": 1300, "advmss": 1260},
			nodetest.Conf{"dst": "10.0.0.0/8", "priority": 7},
			nodetest.Conf{"dst": "10.88.0.1/32", "scope": 253, "table": 100},
			nodetest.Conf{"dst": "172.16.0.0/12", "table": 100},
		},
	})
	server := n.AddPod("ns-1", "http-echo")
	client := n.AddPod("ns-1", "busybox",
		`CAP_ARGS={"ips": ["10.88.0.99/24"], "mac": "02:00:00:00:00:99", "dns": {"servers": ["10.96.0.10"], `+
			`"searches": ["svc.cluster.local"]}}`)
	if server.IP != "10.88.0.4" || client.IP != "10.88.0.99" {
		t.Errorf("got %s and %s; want the first that isn't excluded, and what was asked for", server.IP, client.IP)
	}
	for _, c := range []struct{ command, want string }{
		{"ip -n ns-1.busybox link show eth0", "02:00:00:00:00:99"},
		{"ip -n ns-1.busybox route", "default via 10.88.0.1 dev eth0 mtu 1300 advmss 1260"},
		{"ip -n ns-1.busybox route", "10.0.0.0/8 via 10.88.0.1 dev eth0 metric 7"},
		{"ip -n ns-1.busybox route show table 100", "10.88.0.1 dev eth0 scope link"},
		{"ip -n ns-1.busybox route show table 100", "172.16.0.0/12 via 10.88.0.1 dev eth0"},
	} {
		f := strings.Fields(c.command)
		if out := nodetest.Run(t, f[0], f[1:]...); !strings.Contains(out, c.want) {
			t.Errorf("%s: no %q in\n%s", c.command, c.want, out)
		}
	}
	var result struct {
		Routes []map[string]any
		DNS    map[string]any
	}
	if err := json.Unmarshal([]byte(client.Result), &result); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"nameservers": []any{"10.96.0.10"}, "search": []any{"svc.cluster.local"}},
		result.DNS); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]map[string]any{
		{"dst": "0.0.0.0/0", "gw": "10.88.0.1", "mtu": 1300., "advmss": 1260.},
		{"dst": "10.0.0.0/8", "gw": "10.88.0.1", "priority": 7.},
		{"dst": "10.88.0.1/32", "table": 100., "scope": 253.},
		{"dst": "172.16.0.0/12", "gw": "10.88.0.1", "table": 100.},
	}, result.Routes); diff != "" {
		t.Error(diff)
	}
	n.Serve(client.Netns, "tcp", ":80")
	n.Reach(server, client.IP+":80", true) // the guard (table bridge weir) accepts the requested MAC
	check := func() error {
		_, err := n.CNI("check", client.Netns, nodetest.Args("ns-1", "busybox", ""))
		return err
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	nodetest.Run(t, "ip", "-n", "ns-1.busybox", "route", "del", "172.16.0.0/12", "table", "100")
	if err := check(); err == nil || !strings.Contains(err.Error(), "the pod lacks the route to 172.16.0.0/12") {
		t.Errorf("without one of the routes: %v", err)
	}

	before := leftovers(t)
	for capArgs, words := range map[string]string{
		`{"ips": ["10.88.0.99"]}`:      "10.88.0.99 was requested, but is assigned to",
		`{"ips": ["10.88.0.2"]}`:       "runtimeConfig.ips[0]: 10.88.0.2 is in no range, or a gateway, or excluded",
		`{"ips": ["10.89.0.2"]}`:       "runtimeConfig.ips[0]: 10.89.0.2 is in no range",
		`{"mac": "02:00:00:00:00:99"}`: "mac: 02:00:00:00:00:99: ",
		`{"mac": "` + bridge.MAC(netip.MustParseAddr("10.88.0.1")).String() + `"}`: "another port or the bridge has this MAC",
		`{"ipRanges": [[{"subnet": "10.77.0.0/24"}]], "ips": ["10.88.0.50"]}`: "is in no range, or a gateway, " +
			"or excluded: 10.77.0.0/24",
	} {
		if _, err := n.TryAddPod("ns-2", "other", "CAP_ARGS="+capArgs); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v; want %q", capArgs, err, words)
		}
		if diff := leftBehind(t, before); diff != "" {
			t.Errorf("%s: left behind: %s", capArgs, diff)
		}
	}
	n.Reach(server, client.IP+":80", true) // no other pod has got the client's MAC
	if p := n.AddPod("ns-2", "other", `CAP_ARGS={"ipRanges": [[{"subnet": "10.77.0.0/24"}]]}`); p.IP != "10.77.0.2" {
		t.Errorf("got %s, not one of the runtime's range", p.IP)
	}
}

func TestBehindPtpDualStack(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	testBehindDualStack(t, "ptp")
}

func TestBehindBridgeDualStack(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/bridge", "ipam/host-local") {
		return
	}
	testBehindDualStack(t, "bridge")
}

func newNodeBehindDualStack(t *testing.T, other string) *nodetest.Node {
	t.Helper()
	n := newNodeBehind(t, other, nil)
	ahead := maps.Clone(others[other])
	ahead["ipam"] = nodetest.Conf{
		"type":   "host-local",
		"ranges": []any{[]any{nodetest.Conf{"subnet": "10.99.0.0/24"}}, []any{nodetest.Conf{"subnet": "fd00:99::/64"}}},
		"routes": []any{nodetest.Conf{"dst": "0.0.0.0/0"}, nodetest.Conf{"dst": "::/0"}},
	}
	n.ConfigureList(ahead, nodetest.Conf{"type": "weir"})
	return n
}

func testBehindDualStack(t *testing.T, other string) {
	n := newNodeBehindDualStack(t, other)
	n.StartAgent()
	server, client, stranger := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox"), n.AddPod("ns-2", "other")
	n.Serve(server.Netns, "tcp4", ":80")
	n.Serve(server.Netns, "tcp6", ":80")
	reach := func(from *nodetest.Pod, want bool) {
		t.Helper()
		for _, host := range []string{server.IP, "[" + server.IP6 + "]"} {
			n.Reach(from, host+":80", want)
		}
	}
	reach(client, true)
	n.Manifest("policy.yaml", denyAll)
	reach(client, false)
	allowed := strings.Replace(allow, "app: busybox", "run: busybox", 1)
	n.Manifest("policy.yaml", allowed)
	reach(client, true)
	reach(stranger, false)
	both := `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: both, namespace: ns-1}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  egress: [{to: [{podSelector: {matchLabels: {app: http-echo}}}]}]
`
	n.Manifest("policy.yaml", allowed+"---"+both)
	n.Eventually("the client is isolated", func() error {
		sets, err := nodetest.ListSets()
		if err != nil {
			return err
		}
		rules, err := nodetest.ListChecks()
		if err != nil {
			return err
		}
		if !strings.Contains(sets+rules, "ns-1/both") {
			return fmt.Errorf("no set and no rule of the policy:\n%s%s", sets, rules)
		}
		return nil
	})
	for _, netns := range []string{"ns-1.busybox", "ns-1.http-echo"} {
		nodetest.Run(t, "ip", "-n", netns, "-6", "neigh", "flush", "all")
	}
	nodetest.Run(t, "ip", "-6", "neigh", "flush", "all")
	reach(client, true)
	reach(stranger, false)
	n.ReachFrom(nodetest.Self, "["+server.IP6+"]:80", true)
	if other == "ptp" {
		nothingUnderSolicitations(t, client, stranger)
	}
	n.Manifest("policy.yaml", allowed+"---"+egressOnly)
	reach(client, false)
}

// nothingUnderSolicitations: if an isolated pod sends a neighbour solicitation through the node to another pod, the
// solicitation is dropped. A solicitation from the node itself arrives.
func nothingUnderSolicitations(t *testing.T, from, to *nodetest.Pod) {
	t.Helper()
	raw := func(netns string) *net.IPConn {
		t.Helper()
		var conn *net.IPConn
		nodetest.In(t, netns, func() (err error) {
			conn, err = net.ListenIP("ip6:ipv6-icmp", &net.IPAddr{IP: net.IPv6unspecified})
			return err
		})
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	in := raw(to.Netns)
	for _, sender := range []struct{ netns, says string }{{from.Netns, "from the pod"}, {nodetest.Self, "from the node"}} {
		out := raw(sender.netns)
		control, err := out.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(control.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255)
		}), err); err != nil {
			t.Fatal(err)
		}
		solicitation := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, net.ParseIP(to.IP6)...)
		if _, err := out.WriteTo(append(solicitation, sender.says...), &net.IPAddr{IP: net.ParseIP(to.IP6)}); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 1500)
	for {
		if err := in.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		k, err := in.Read(buf)
		if err != nil {
			t.Fatalf("not even the node's came: %v", err)
		}
		if bytes.Contains(buf[:k], []byte("from the pod")) {
			t.Error("an isolated pod's packet passed as a neighbour solicitation")
		}
		if bytes.Contains(buf[:k], []byte("from the node")) {
			return
		}
	}
}

// TestSourceRoutes: while the node accepts source routes, a packet can reach an isolated pod behind ptp, because at
// the FORWARD hook, the packet's destination is still the node's address, and not the pod's. So the agent sets the
// sysctl accept_source_route to 0.
func TestSourceRoutes(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t, "main/ptp", "ipam/host-local") {
		return
	}
	n := newNodeBehind(t, "ptp", nil)
	n.Manifest("policy.yaml", denyAll)
	n.StartAgent()
	pod := n.AddPod("ns-1", "http-echo")
	const sysctl = "/proc/sys/net/ipv4/conf/all/accept_source_route"
	accept := func() error {
		ofLink := strings.Replace(sysctl, "all", "eth0", 1) // a source route counts only if both settings are 1
		return errors.Join(os.WriteFile(ofLink, []byte("1"), 0o600), os.WriteFile(sysctl, []byte("1"), 0o600))
	}
	var server, client net.PacketConn
	nodetest.In(t, pod.Netns, func() (err error) { // a pod's namespace may inherit these settings from the node
		server, err = net.ListenPacket("udp4", ":80")
		return errors.Join(err, accept())
	})
	nodetest.In(t, n.Outside, func() (err error) {
		client, err = net.ListenPacket("udp4", ":0")
		return err
	})
	defer func() { _ = errors.Join(server.Close(), client.Close()) }()
	var number byte
	arrives := func() error {
		number++ // a late packet of an earlier try has another number
		if _, err := client.WriteTo([]byte{number}, &net.UDPAddr{IP: net.ParseIP(pod.IP), Port: 80}); err != nil {
			t.Fatal(err)
		}
		if err := server.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		for got := []byte{number - 1}; got[0] != number; {
			if _, _, err := server.ReadFrom(got); err != nil {
				return err
			}
		}
		return nil
	}
	if err := arrives(); err == nil {
		t.Error("the pod gets a packet without a source route")
	}
	raw, err := client.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	route := string([]byte{0x83, 7, 4, 192, 0, 2, 2, 0}) // a loose source route over the node (192.0.2.2)
	outer := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, route)
	})
	if err := errors.Join(outer, err); err != nil {
		t.Fatal(err)
	}
	if err := arrives(); err == nil {
		t.Error("the pod gets a packet with a source route, although the node doesn't accept it")
	}
	n.Eventually("a packet with a source route arrives while the node accepts it", func() error {
		return errors.Join(accept(), arrives())
	})
	n.Eventually("the agent has set the sysctl to 0", func() error {
		if now, err := os.ReadFile(sysctl); err != nil || string(now) != "0\n" {
			return fmt.Errorf("it is %q: %w", now, err)
		}
		return nil
	})
	if err := arrives(); err == nil {
		t.Error("the pod gets a packet with a source route after the repair")
	}
}
