package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-net/weir/netfilter/conntrack"
	"github.com/weir-net/weir/test/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

const cluster = `
apiVersion: v1
kind: Namespace
metadata: {name: ns-1}
---
apiVersion: v1
kind: Namespace
metadata: {name: ns-2, labels: {team: two}}
---
apiVersion: v1
kind: Pod
metadata: {name: http-echo, namespace: ns-1, labels: {app: http-echo}}
---
apiVersion: v1
kind: Pod
metadata: {name: busybox, namespace: ns-1, labels: {run: busybox}}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: ns-2, labels: {app: busybox}}
`

const denyAll = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: deny-all-by-default, namespace: ns-1}
spec: {podSelector: {}}
`

const allow = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: allow, namespace: ns-1}
spec:
  podSelector: {matchLabels: {app: http-echo}}
  ingress:
  - from:
    - podSelector: {matchLabels: {app: busybox}}
`

// egressOnly lets busybox send only to UDP port 53 of any host.
const egressOnly = `
kind: NetworkPolicy
apiVersion: networking.k8s.io/v1
metadata: {name: egress, namespace: ns-1}
spec:
  podSelector: {matchLabels: {run: busybox}}
  policyTypes: [Egress]
  egress: [{ports: [{port: 53, protocol: UDP}]}]
`

func newNode(t *testing.T, conf nodetest.Conf) *nodetest.Node {
	n := nodetest.NewNode(t, conf)
	n.Manifest("cluster.yaml", cluster)
	n.StartAgent()
	return n
}

// applied waits until the status has the words. The kernel then has the change, because the agent changes the kernel
// before it renews its status.
func applied(n *nodetest.Node, words string) {
	n.Helper()
	n.Eventually("the status has "+words, func() error {
		if out, err := n.Ctl("status"); err != nil || !strings.Contains(out, words) {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

func TestWalkthrough(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	before := leftovers(t)
	server, client, other := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox"), n.AddPod("ns-2", "other")
	n.Serve(server.Netns, "tcp", ":80")
	n.Reach(client, server.IP+":80", true)
	n.Reach(other, server.IP+":80", true)

	n.Manifest("policy.yaml", denyAll)
	n.Reach(client, server.IP+":80", false)
	n.Reach(other, server.IP+":80", false)

	n.Manifest("policy.yaml", allow)
	n.Reach(client, server.IP+":80", false)
	n.Manifest("cluster.yaml", strings.Replace(cluster, "{run: busybox}", "{run: busybox, app: busybox}", 1))
	n.Reach(client, server.IP+":80", true)
	n.Reach(other, server.IP+":80", false) // other has the label app=busybox, but is in another namespace

	for _, p := range []*nodetest.Pod{server, client, other} {
		n.DelPod(p)
	}
	n.Manifest("policy.yaml", "")
	n.Eventually("nothing of the pods is left", func() error {
		if diff := leftBehind(t, before); diff != "" {
			return fmt.Errorf("before and after: %s", diff)
		}
		return nil
	})
}

func leftovers(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, dir := range []string{"/run/weir/endpoints", "/run/weir/addresses"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, dir+"/"+e.Name())
		}
	}
	add := func(prefix, out string) {
		for line := range strings.Lines(out) {
			all = append(all, prefix+strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(nodetest.Run(t, "ip", "-o", "link")) {
		if name := strings.Fields(line)[1]; strings.HasPrefix(name, "weirp") {
			all = append(all, "link "+name)
		}
	}
	for line := range strings.Lines(nodetest.Run(t, "ip", "neigh", "show", "nud", "permanent")) {
		if !strings.Contains(line, " dev eth0 ") { // the entries of eth0 are the node's own
			add("neigh ", line)
		}
	}
	sets, err := nodetest.ListSets()
	if err != nil && !nodetest.Nftables() { // without an agent, nftables may have no table of weir's yet
		t.Fatal(err)
	}
	for line := range strings.Lines(sets) {
		if strings.Contains(line, "comment") && !strings.HasPrefix(line, "Header") &&
			!strings.Contains(line, "pods of this node") {
			all = append(all, "set "+strings.TrimSpace(line))
		}
	}
	for _, set := range []string{"senders4", "senders6"} {
		if out, err := exec.Command("nft", "list", "set", "bridge", "weir", set).Output(); err == nil &&
			strings.Contains(string(out), "elements") {
			add("nft ", string(out))
		}
	}
	slices.Sort(all)
	return all
}

// leftBehind returns the difference between before and the node's state. It waits up to a minute until there is no
// difference, because the agent removes set entries after the plugin has returned.
func leftBehind(t testing.TB, before []string) (diff string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if diff = cmp.Diff(before, leftovers(t)); diff == "" || time.Now().After(end) {
			return diff
		}
	}
}

func TestPodsReachTheWorldAsTheirNode(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server := n.AddPod("ns-1", "http-echo",
		`CAP_ARGS={"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`)
	client := n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(n.Outside, "tcp", ":80")
	// On a busy machine, a new link sends nothing for a moment. So greets tries again.
	greets := func(netns, address, want string) {
		t.Helper()
		n.Eventually(want+" from "+address, func() error {
			got, err := nodetest.Get(t, netns, address)
			if err == nil && got != want {
				err = fmt.Errorf("the greeting is %q", got)
			}
			return err
		})
	}
	greets(client.Netns, server.IP+":80", "hello "+client.IP) // a pod's server sees the client's own address
	greets(client.Netns, "192.0.2.1:80", "hello 192.0.2.2")   // a server outside sees the node's address
	greets(n.Outside, "192.0.2.2:8080", "hello 192.0.2.1")    // a pod behind a hostPort sees the client's address
	n.Manifest("policy.yaml", denyAll)
	n.ReachFrom(n.Outside, "192.0.2.2:8080", false)
	n.ReachFrom(nodetest.Self, server.IP+":80", true) // the node always reaches its pods
}

func TestEgressPolicyHoldsTowardsTheNodeAndTheWorld(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	where := map[string]string{
		server.IP: server.Netns, "192.0.2.1": n.Outside, "192.0.2.2": nodetest.Self,
		"10.88.0.1": nodetest.Self,
	}
	for addr, netns := range where {
		n.Serve(netns, "tcp", addr+":80")
		n.Serve(netns, "udp", addr+":53")
		n.Reach(client, addr+":80", true)
	}
	n.Manifest("policy.yaml", egressOnly)
	for addr := range where {
		n.Reach(client, addr+":80", false)
		n.Eventually("UDP 53 of "+addr, func() error { return askUDP(t, client.Netns, addr+":53", time.Second) })
	}
	// No policy isolates the pod in ingress, so the connection arrives. It is refused, because no server listens.
	n.Eventually("a pod under an egress policy refuses a connection", func() error {
		if _, err := nodetest.Dial(t, server.Netns, "tcp", client.IP+":81"); err == nil ||
			!strings.Contains(err.Error(), "refused") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}

func askUDP(t testing.TB, netns, address string, wait time.Duration) error {
	conn := nodetest.Connect(t, netns, "udp", address)
	defer func() { _ = conn.Close() }()
	return nodetest.Answers(conn, wait)
}

func TestAStrangersAcceptLetsNothingThrough(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	n.Manifest("policy.yaml", denyAll)
	n.Reach(client, server.IP+":80", false)
	for _, table := range []string{"filter", "mangle"} {
		nodetest.Run(t, "iptables", "-t", table, "-I", "FORWARD", "1", "-j", "ACCEPT")
		if table == "mangle" && !nodetest.Nftables() {
			n.Eventually("weir's rule is first again", func() error {
				rules := nodetest.Run(t, "iptables", "-t", "mangle", "-S", "FORWARD")
				if lines := strings.Split(rules, "\n"); !strings.Contains(lines[1], "WEIR-FORWARD") {
					return fmt.Errorf("%s", rules)
				}
				return nil
			})
		}
		for range 3 {
			if got, err := nodetest.Get(t, client.Netns, server.IP+":80"); err == nil {
				t.Errorf("with ACCEPT first in %s FORWARD a denied connection got %q", table, got)
			}
		}
	}
}

func TestForeignDropPolicyDoesNotHurtPods(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	nodetest.Run(t, "iptables", "-P", "FORWARD", "DROP")
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	nodetest.Greeting(t, client.Netns, server.IP+":80")
}

func TestOpenConnectionsAreCut(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	conn := nodetest.Connect(t, client.Netns, "tcp", server.IP+":80")
	kubelet := nodetest.Connect(t, nodetest.Self, "tcp", server.IP+":80")
	n.Eventually("the connection works", func() error { return exchange(conn) })
	n.Manifest("policy.yaml", denyAll)
	n.Eventually("the connection is cut", func() error {
		if exchange(conn) == nil {
			return fmt.Errorf("it goes on")
		}
		return nil
	})
	n.Eventually("the node's own connection isn't cut", func() error { return exchange(kubelet) })
	// TCP repeats the dropped packets, so the connection continues once the policy is gone.
	n.Manifest("policy.yaml", "")
	n.Eventually("the connection goes on", func() error { return exchange(conn) })
}

func exchange(conn net.Conn) error { return nodetest.Answers(conn, 250*time.Millisecond) }

func TestEnforcementOutlivesTheAgent(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	n.Serve(client.Netns, "tcp", ":80")
	n.Manifest("policy.yaml", denyAll)
	applied(n, "ns-1/deny-all-by-default")
	n.Reach(client, server.IP+":80", false)
	rules := rulesNow(t)

	n.KillAgent()
	n.Reach(client, server.IP+":80", false)
	before := leftovers(t)
	wantRefusal(t, n, nodetest.Args("ns-2", "other", ""), "no agent answers")
	if diff := leftBehind(t, before); diff != "" {
		t.Errorf("a refused pod left behind: %s", diff)
	}
	// A new agent finds the kernel's rules right, and changes none.
	n.StartAgent()
	if diff := cmp.Diff(rules, rulesNow(t)); diff != "" {
		t.Errorf("the restart changed rules: %s", diff)
	}
	n.Reach(client, server.IP+":80", false)
	n.KillAgent()
	n.DelPod(client)
	n.StartAgent()
	if out, err := nodetest.ListSets(); err != nil || strings.Contains(out, client.IP+" ") {
		t.Errorf("%s is still in a set: %v\n%s", client.IP, err, out)
	}
}

func rulesNow(t testing.TB) []string {
	var rules []string
	if nodetest.Nftables() {
		return strings.Split(nodetest.Run(t, "nft", "--stateless", "--terse", "list", "table", "ip", "weir"), "\n")
	}
	for line := range strings.Lines(nodetest.Run(t, "iptables-save")) {
		if strings.Contains(line, "WEIR") && strings.HasPrefix(line, "-A") {
			rules = append(rules, line)
		}
	}
	return rules
}

func TestClosedPodsWaitForTheAgent(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nodetest.Conf{"enforcement": "closed"})
	n.Manifest("cluster.yaml", cluster)
	// No agent has ever run on this node, so no rule drops anything. The pods' links stay down instead.
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	if _, err := nodetest.Get(t, client.Netns, server.IP+":80"); err == nil {
		t.Error("a pod is open that no agent has enrolled")
	}
	if _, err := nodetest.Get(t, client.Netns, "192.0.2.1:80"); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("a pod is open that no agent has enrolled: %v", err)
	}
	n.StartAgent()
	n.Reach(client, server.IP+":80", true)
	n.Manifest("policy.yaml", denyAll)
	n.Reach(client, server.IP+":80", false)
	n.KillAgent()
	late := n.AddPod("ns-2", "other")
	if _, err := nodetest.Get(t, nodetest.Self, late.IP+":80"); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("a pod that came while the agent was dead is open: %v", err)
	}
	n.StartAgent()
	n.Serve(late.Netns, "tcp", ":80")
	n.Reach(client, late.IP+":80", true)
}

func TestOffNeedsNoAgent(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nodetest.Conf{"enforcement": "off"})
	server, client := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox")
	n.Serve(server.Netns, "tcp", ":80")
	n.Reach(client, server.IP+":80", true)
	n.Manifest("cluster.yaml", cluster+"---"+denyAll)
	n.StartAgent()
	n.Reach(client, server.IP+":80", true)
}

func TestParallel(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	const pods = 60
	n := nodetest.NewNode(t, nil)
	var manifests strings.Builder
	manifests.WriteString(cluster)
	for i := range pods {
		fmt.Fprintf(&manifests, "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p%d, namespace: ns-1}\n", i)
	}
	n.Manifest("cluster.yaml", manifests.String())
	n.StartAgent()
	before := leftovers(t)
	for round := range 2 {
		var wg sync.WaitGroup
		added := make([]*nodetest.Pod, pods)
		for i := range pods {
			nodetest.NewNS(t, fmt.Sprintf("ns-1.p%d", i))
		}
		for i := range pods {
			wg.Add(1)
			go func() {
				defer wg.Done()
				p, err := n.TryAddPod("ns-1", fmt.Sprintf("p%d", i))
				if err != nil {
					t.Error(err)
				}
				added[i] = p
			}()
		}
		wg.Wait()
		seen := map[string]bool{}
		for _, p := range added {
			if p.IP == "" || seen[p.IP] {
				t.Errorf("round %d: %s/%s has address %q, empty or given twice", round, p.Namespace, p.Name, p.IP)
			}
			seen[p.IP] = true
		}
		n.Serve(added[0].Netns, "tcp", ":80")
		for _, p := range added[1:] {
			nodetest.Greeting(t, p.Netns, added[0].IP+":80")
		}
		for _, p := range added {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if _, err := n.CNI("del", p.Netns, nodetest.Args(p.Namespace, p.Name, "")); err != nil {
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		for _, p := range added {
			nodetest.DelNS(t, p.Netns)
		}
		n.Eventually("nothing is left", func() error {
			if diff := leftBehind(t, before); diff != "" {
				return fmt.Errorf("before and after: %s", diff)
			}
			return nil
		})
	}
}

func TestNewPodsSendAtOnce(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	n.Serve(n.Outside, "udp", ":53")
	for i := range 50 {
		p := n.AddPod("ns-1", "busybox")
		if err := askUDP(t, p.Netns, "192.0.2.1:53", 10*time.Second); err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
		if _, err := n.CNI("del", p.Netns, nodetest.Args("ns-1", "busybox", "")); err != nil {
			t.Fatal(err)
		}
		nodetest.DelNS(t, p.Netns)
	}
}

func TestDelNeedsNothing(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	before := leftovers(t)
	p := n.AddPod("ns-1", "busybox")
	flows := func() (of int) {
		for c, err := range conntrack.All() {
			if err != nil {
				t.Fatal(err)
			}
			if c.Src.String() == p.IP || c.Dst.String() == p.IP {
				of++
			}
		}
		return of
	}
	n.Serve(n.Outside, "udp", ":53")
	if err := askUDP(t, p.Netns, "192.0.2.1:53", 10*time.Second); err != nil || flows() == 0 {
		t.Fatalf("%v, %d connections of the pod's", err, flows())
	}
	n.KillAgent()
	// The namespace and the agent are gone, and the configuration is invalid. DEL succeeds nevertheless, and again if
	// it is repeated.
	nodetest.DelNS(t, p.Netns)
	n.Configure(nodetest.Conf{"ranges": "none"})
	for range 2 {
		if _, err := n.CNI("del", p.Netns, ""); err != nil {
			t.Fatal(err)
		}
	}
	if diff := leftBehind(t, before); diff != "" {
		t.Errorf("before and after: %s", diff)
	}
	if flows() != 0 {
		t.Errorf("%d connections of the pod's are left for whom gets its address", flows())
	}
}

// TestARepeatedDelLeavesTheNextHolderAlone: if a pod's DEL is repeated after another pod has got the address, the
// other pod keeps the address, its set entries and its neighbour entry.
func TestARepeatedDelLeavesTheNextHolderAlone(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nodetest.Conf{"ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.2"}}})
	first := n.AddPod("ns-1", "busybox")
	records, err := filepath.Glob("/run/weir/endpoints/*.json")
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	record, err := os.ReadFile(records[0])
	if err != nil {
		t.Fatal(err)
	}
	del := func() {
		t.Helper()
		if _, err := n.CNI("del", first.Netns, nodetest.Args("ns-1", "busybox", "")); err != nil {
			t.Fatal(err)
		}
	}
	del()
	second := n.AddPod("ns-1", "http-echo")
	if second.IP != first.IP {
		t.Fatalf("the second pod has %s, want %s", second.IP, first.IP)
	}
	n.StopAgent() // the agent would repair the sets
	held := func() string {
		sets, err := nodetest.ListSets()
		if err != nil {
			t.Fatal(err)
		}
		return sets + nodetest.Run(t, "ip", "neigh", "show", "dev", "weir0", "nud", "permanent") +
			nodetest.Run(t, "readlink", "/run/weir/addresses/"+second.IP)
	}
	before := held()
	if err := os.WriteFile(strings.TrimSuffix(records[0], ".json")+".ending", record, 0o600); err != nil {
		t.Fatal(err)
	}
	del()
	if diff := cmp.Diff(before, held()); diff != "" {
		t.Errorf("the second pod has lost what is its own: %s", diff)
	}
	if left, err := filepath.Glob("/run/weir/endpoints/*.ending"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	p := n.AddPod("ns-1", "busybox")
	checkPod := func() error {
		_, err := n.CNI("check", p.Netns, nodetest.Args("ns-1", "busybox", ""))
		return err
	}
	if err := checkPod(); err != nil {
		t.Fatal(err)
	}
	link := ""
	for _, l := range leftovers(t) {
		if name, ok := strings.CutPrefix(l, "link "); ok {
			link = strings.TrimSuffix(strings.Split(name, "@")[0], ":")
		}
	}
	mac := strings.Fields(nodetest.Run(t, "ip", "neigh", "show", p.IP))[4]
	gateway := strings.Fields(nodetest.Run(t, "ip", "-n", "ns-1.busybox", "neigh", "show", "10.88.0.1"))[4]
	n.KillAgent() // the agent could repair the damage before CHECK sees it
	for _, tc := range []struct{ name, breakIt, mendIt, want string }{
		{
			"isolation", "bridge link set dev " + link + " isolated off", "bridge link set dev " + link + " isolated on",
			"isolated",
		},
		{
			"set", nodetest.TakeOutOf(nodetest.PodSet, p.IP), nodetest.PutInto(nodetest.PodSet, p.IP),
			nodetest.PodSet,
		},
		{
			"neighbour", "ip neigh del " + p.IP + " dev weir0",
			"ip neigh add " + p.IP + " lladdr " + mac + " dev weir0 nud permanent", "neighbour",
		},
		{
			"address", "ip -n ns-1.busybox addr add 10.0.0.1/32 dev eth0", "ip -n ns-1.busybox addr del 10.0.0.1/32 dev eth0",
			"",
		},
		{
			"route", "ip -n ns-1.busybox route del default", "ip -n ns-1.busybox route add default via 10.88.0.1",
			"default route",
		},
		{"link", "ip link set " + link + " down", "ip link set " + link + " up", "is down"},
		{
			"MTU", "ip link set " + link + " mtu 1400", "ip link set " + link + " mtu 1500",
			"has MTU 1500, and its other end 1400",
		},
		{
			"forwarding", "bridge fdb del " + mac + " dev " + link + " master",
			"bridge fdb add " + mac + " dev " + link + " master static", "forwarding entry",
		},
		{
			"class", nodetest.TakeOutOf("weir-in", p.IP), nodetest.PutInto("weir-in", p.IP),
			"no class (",
		},
		{
			"holder", "mv /run/weir/addresses/" + p.IP + " /run/weir/held", "mv /run/weir/held /run/weir/addresses/" + p.IP,
			"is assigned to",
		},
		{
			"the pod's neighbour", "ip -n ns-1.busybox neigh del 10.88.0.1 dev eth0",
			"ip -n ns-1.busybox neigh add 10.88.0.1 lladdr " + gateway + " dev eth0 nud permanent", "in the pod",
		},
		{
			"the other end", "ip -n ns-1.busybox link set eth0 name eth7", "ip -n ns-1.busybox link set eth7 name eth0",
			"eth0 in the pod",
		},
		{
			"guard", "nft delete element bridge weir senders4 { " + link + " . " + mac + " . " + p.IP + " }",
			"nft add element bridge weir senders4 { " + link + " . " + mac + " . " + p.IP + " }", "guard",
		},
	} {
		f := strings.Fields(tc.breakIt)
		nodetest.Run(t, f[0], f[1:]...)
		err := checkPod()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want an error with %q", tc.name, err, tc.want)
		}
		f = strings.Fields(tc.mendIt)
		nodetest.Run(t, f[0], f[1:]...)
	}
	if err := checkPod(); err != nil {
		t.Errorf("after all was mended: %v", err)
	}
	// CHECK also compares the pod with prevResult, which plugins after weir may have changed.
	records, err := filepath.Glob("/run/weir/endpoints/*.json")
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	id, _, _ := strings.Cut(filepath.Base(records[0]), ":")
	for prev, want := range map[string]string{
		p.Result: "",
		strings.Replace(p.Result, p.IP+"/32", "10.88.0.77/32", 1): "address 10.88.0.77/32",
		strings.Replace(p.Result, link, "weirp0000000000", 1):     "weirp0000000000",
		strings.Replace(p.Result, mac, "02:00:00:00:00:09", 1):    "02:00:00:00:00:09",
	} {
		code, msg := weir(t, n, map[string]string{
			"CNI_COMMAND": "CHECK", "CNI_CONTAINERID": id, "CNI_IFNAME": "eth0", "CNI_PATH": n.Bin, "CNI_NETNS": p.Netns,
		}, `{"cniVersion": "1.0.0", "name": "weir", "type": "weir", "ranges": [{"subnet": "10.88.0.0/24"}], "prevResult": `+
			prev+"}")
		if (code == 5) != (want != "") || !strings.Contains(msg, want) {
			t.Errorf("code %d: %s; want an error with %q", code, msg, want)
		}
	}
}

func TestUIDMustMatch(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := nodetest.NewNode(t, nil)
	n.Manifest("cluster.yaml", strings.Replace(cluster, "{name: busybox,", "{name: busybox, uid: one,", 1))
	n.StartAgent() // when the agent is ready, it knows the UID
	p := n.AddPod("ns-1", "http-echo")
	nodetest.NewNS(t, "namesake")
	before := leftovers(t)
	wantRefusal(t, n, nodetest.Args("ns-1", "busybox", "two"), "namesake")
	if diff := leftBehind(t, before); diff != "" {
		t.Errorf("before and after: %s", diff)
	}
	if _, err := n.CNI("add", "/run/netns/namesake", nodetest.Args("ns-1", "busybox", "one")); err != nil {
		t.Error(err)
	}
	n.DelPod(p)
}

// weir calls the plugin. It returns the error's code and message, or 0 and the plugin's output.
func weir(t *testing.T, n *nodetest.Node, env map[string]string, stdin string) (code uint, msg string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(n.Bin, "weir"))
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = os.Environ()
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.Output()
	if err == nil {
		return 0, string(out)
	}
	var e struct {
		Code uint
		Msg  string
	}
	if err := json.Unmarshal(out, &e); err != nil {
		t.Errorf("the error is no CNI error JSON: %q", out)
	}
	return e.Code, e.Msg
}

// wantRefusal calls ADD for a new container. ADD must fail with code 11 ("try again later"), and its message must
// contain words.
func wantRefusal(t *testing.T, n *nodetest.Node, args, words string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.ConfDir, "10-weir.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Plugins []map[string]any }
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	list.Plugins[0]["cniVersion"], list.Plugins[0]["name"] = "1.0.0", "weir"
	conf, err := json.Marshal(list.Plugins[0])
	if err != nil {
		t.Fatal(err)
	}
	got, msg := weir(t, n, map[string]string{
		"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "refused", "CNI_IFNAME": "eth0", "CNI_PATH": n.Bin, "CNI_ARGS": args,
		"CNI_NETNS": nodetest.NewNS(t, "refused"),
	}, string(conf))
	nodetest.DelNS(t, "/run/netns/refused")
	if got != 11 || !strings.Contains(msg, words) {
		t.Errorf("code %d: %s; want code 11 with %q", got, msg, words)
	}
}

func TestBadInput(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nil)
	n.AddPod("ns-1", "http-echo") // this makes the bridge
	netns := nodetest.NewNS(t, "pod")
	if err := os.WriteFile("/run/nothing", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := leftovers(t)
	for _, tc := range []struct {
		name, conf string // conf has the keys other than cniVersion, name and type
		env        map[string]string
		code       uint
		want       string
	}{
		{"unknown key", `"ranges": [{"subnet": "10.88.0.0/24"}], "rangs": 1`, nil, 2, "rangs: 1"},
		{"unknown key in a range", `"ranges": [{"subnet": "10.88.0.0/24", "start": "x"}]`, nil, 2, `ranges[0].start: "x"`},
		{"no ranges", `"mtu": 1500`, nil, 7, "ranges is missing"},
		{"empty ranges", `"ranges": []`, nil, 7, "ranges is missing"},
		{"ranges of a wrong type", `"ranges": {"subnet": "10.88.0.0/24"}`, nil, 7, "ranges:"},
		{"a range without subnet", `"ranges": [{"gateway": "10.88.0.1"}]`, nil, 7, "ranges[0].subnet is missing"},
		{"bad CIDR", `"ranges": [{"subnet": "10.88.0.0/33"}]`, nil, 7, `ranges[0].subnet: "10.88.0.0/33"`},
		{"host bits", `"ranges": [{"subnet": "10.88.0.7/24"}]`, nil, 7, "ranges[0].subnet: 10.88.0.7/24"},
		{"too small", `"ranges": [{"subnet": "10.88.0.0/31"}]`, nil, 7, "ranges[0].subnet: 10.88.0.0/31"},
		{"bad gateway", `"ranges": [{"subnet": "10.88.0.0/24", "gateway": "gw"}]`, nil, 7, `ranges[0].gateway: "gw"`},
		{
			"gateway outside", `"ranges": [{"subnet": "10.88.0.0/24", "gateway": "10.89.0.1"}]`, nil,
			7, "ranges[0].gateway: 10.89.0.1 is outside of subnet 10.88.0.0/24",
		},
		{
			"broadcast as gateway", `"ranges": [{"subnet": "10.88.0.0/24", "gateway": "10.88.0.255"}]`, nil, 7,
			"ranges[0].gateway: 10.88.0.255",
		},
		{
			"range outside", `"ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.1.9"}]`, nil,
			7, "ranges[0].rangeEnd: 10.88.1.9",
		},
		{
			"range upside down", `"ranges": [{"subnet": "10.88.0.0/24", "rangeStart": "10.88.0.9", "rangeEnd": "10.88.0.8"}]`,
			nil, 7, "ranges[0].rangeEnd: 10.88.0.8",
		},
		{
			"overlapping subnets", `"ranges": [{"subnet": "10.88.0.0/16"}, {"subnet": "10.88.3.0/24"}]`, nil, 7,
			"ranges[1].subnet: 10.88.3.0/24 overlaps ranges[0]",
		},
		{
			"overlapping ranges",
			`"ranges": [{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.9"}, {"subnet": "10.88.0.0/24", ` +
				`"rangeStart": "10.88.0.9"}]`, nil, 7, "ranges[1].rangeStart: 10.88.0.9 overlaps",
		},
		{"bad mtu", `"ranges": [{"subnet": "10.88.0.0/24"}], "mtu": 10`, nil, 7, "mtu: 10"},
		{"mtu of a wrong type", `"ranges": [{"subnet": "10.88.0.0/24"}], "mtu": "big"`, nil, 7, `mtu: "big"`},
		{"bad enforcement", `"ranges": [{"subnet": "10.88.0.0/24"}], "enforcement": "lax"`, nil, 7, "enforcement: lax"},
		{"no JSON", `"ranges": [`, nil, 6, ""},
		{"no namespace", ``, map[string]string{"CNI_NETNS": "/run/none"}, 4, "CNI_NETNS: /run/none"},
		{"no namespace but a file", ``, map[string]string{"CNI_NETNS": "/run/nothing"}, 4, "CNI_NETNS: /run/nothing"},
		{"the node's own namespace", ``, map[string]string{"CNI_NETNS": nodetest.Self}, 4, "CNI_NETNS"},
		{
			"another kind of namespace", ``,
			map[string]string{"CNI_NETNS": "/proc/self/ns/mnt"},
			4,
			"CNI_NETNS: /proc/self/ns/mnt",
		},
		{"no pod", ``, map[string]string{"CNI_ARGS": ""}, 4, "K8S_POD_NAMESPACE"},
		{"no pair in CNI_ARGS", ``, map[string]string{"CNI_ARGS": "K8S_POD_NAME"}, 4, "CNI_ARGS"},
		{
			"a name that is none", ``,
			map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=y"},
			4,
			"K8S_POD_NAMESPACE",
		},
		{"interface exists", ``, map[string]string{"CNI_IFNAME": "lo"}, 4, "lo"},
		{"unknown pod", ``, map[string]string{"CNI_ARGS": "K8S_POD_NAMESPACE=ns-1;K8S_POD_NAME=who"}, 11, "ns-1/who"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conf := tc.conf
			if conf == "" {
				conf = `"ranges": [{"subnet": "10.88.0.0/24"}]`
			}
			env := map[string]string{
				"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": netns, "CNI_IFNAME": "eth0", "CNI_PATH": n.Bin,
				"CNI_ARGS": nodetest.Args("ns-1", "busybox", ""),
			}
			for k, v := range tc.env {
				env[k] = v
			}
			code, msg := weir(t, n, env, `{"cniVersion": "1.0.0", "name": "weir", "type": "weir", `+conf+"}")
			if code != tc.code || !strings.Contains(msg, tc.want) {
				t.Errorf("code %d: %s; want code %d with %q", code, msg, tc.code, tc.want)
			}
			if diff := leftBehind(t, before); diff != "" {
				t.Errorf("left behind: %s", diff)
			}
		})
	}
}

func TestExhaustedRangeAndReuse(t *testing.T) {
	if !nodetest.IsolatedWithWeir(t) {
		return
	}
	n := newNode(t, nodetest.Conf{"ranges": []any{nodetest.Conf{"subnet": "10.88.0.0/24", "rangeEnd": "10.88.0.4"}}})
	_, second, _ := n.AddPod("ns-1", "http-echo"), n.AddPod("ns-1", "busybox"), n.AddPod("ns-2", "other")
	before := leftovers(t)
	wantRefusal(t, n, nodetest.Args("ns-1", "busybox", ""), "no free address in 10.88.0.0/24 (10.88.0.1 to 10.88.0.4)")
	if diff := leftBehind(t, before); diff != "" {
		t.Errorf("left behind: %s", diff)
	}
	n.DelPod(second)
	again := n.AddPod("ns-1", "busybox")
	if again.IP != second.IP {
		t.Errorf("the only free address is %s, got %s", second.IP, again.IP)
	}
}
