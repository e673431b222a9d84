package scale_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-net/weir/test/nodetest"
	"github.com/weir-net/weir/test/scale/apiserver"
	"github.com/weir-net/weir/test/scale/cluster"
)

// node is the measured node: a real agent with a synthetic API server. Another process, the orchestrator (TestScale),
// sends requests to the node over a socket.
type node struct {
	*nodetest.Node
	cluster *cluster.Cluster
	server  *apiserver.Server
	stream  *cluster.Stream
	stop    func() int // ends the running stream; nil if none runs

	patience time.Duration

	cni     *libcni.CNIConfig
	network *libcni.NetworkConfigList
	created int // number of pods created so far; a part of the next pod's name

	probeServer string // address and port of the probed pod
	remote      *corev1.Pod
	arrivals    *arrivals
}

type request struct {
	Do      string
	N       int
	Rounds  int
	Rate    float64
	Mix     string
	Seconds float64
}

const selfAddress, neighbourAddress = "192.0.2.2", "192.0.2.1"

func runNode(t *testing.T, socket string, pods int) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	n := newNode(t, pods)
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			return // the orchestrator has ended
		}
		if err := out.Encode(n.answer(r)); err != nil {
			t.Fatal(err)
		}
	}
}

func (n *node) answer(r request) any {
	switch r.Do {
	case "start":
		return n.start()
	case "fill":
		return n.fill()
	case "restart":
		if r.N > 0 {
			return n.restartTraced()
		}
		return n.restart()
	case "memory":
		return n.memory()
	case "stream":
		n.background(r.Rate, r.Mix)
		return true
	case "cpu":
		return n.window(r)
	case "add":
		return n.adds(r.N)
	case "policy":
		return n.policies()
	case "peer":
		return n.peers()
	case "attack":
		return n.attack(cluster.Attacks[r.N], r.Rounds)
	case "toggle":
		return n.toggle(r.Rate, time.Duration(r.Seconds*float64(time.Second)))
	}
	n.Fatalf("no such request: %s", r.Do)
	return nil
}

func newNode(t *testing.T, pods int) *node {
	debug.SetGCPercent(400) // so that garbage collection of the API server takes less of the machine's time
	n := &node{Node: nodetest.NewNode(t, nil), patience: patience}
	n.cluster = cluster.New(pods, *localFlag, *namespacesFlag, netip.MustParseAddr(selfAddress),
		netip.MustParseAddr(neighbourAddress))
	var err error
	if n.server, err = n.cluster.Serve("127.0.0.1:6443"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.server.Close)
	if err := os.WriteFile(n.kubeconfig(), n.server.Kubeconfig(), 0o600); err != nil {
		t.Fatal(err)
	}
	n.server.Put(cluster.NewNamespace("probes", "team-probes"))
	n.stream = cluster.NewStream(n.cluster, n.server)
	// The neighbour is in the same subnet, so packets from its pods come without a tunnel.
	n.remote = cluster.NewPod("probes", "remote", "remote", "uid-of-remote")
	n.remote.Spec.NodeName = cluster.NodeName(1)
	cluster.Run(n.remote, cluster.Address(1, 0).String())
	n.server.Put(n.remote)
	nodetest.Run(t, "ip", "-n", "outside", "addr", "add", n.remote.Status.PodIP+"/32", "dev", "lo")
	nodetest.Run(t, "ip", "-n", "outside", "route", "add", "10.100.0.0/24", "via", selfAddress)
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{n.Bin}, "/run/cni-cache", nil)
	return n
}

func (n *node) kubeconfig() string { return filepath.Join(n.ConfDir, "kubeconfig") }
func (n *node) conflist() string   { return filepath.Join(n.ConfDir, "10-weir.conflist") }

type started struct {
	// Ready is how many seconds the agent takes from its start until it is ready. AfterLists is the part of this time
	// after the API server had sent all lists.
	Ready, AfterLists float64
	Memory            memory // when the agent is ready
	IPTables          string // the flavour of iptables that the agent uses
}

func (n *node) start() started {
	began := time.Now()
	n.SpawnAgent("--kubeconfig", n.kubeconfig(), "--node-name", cluster.NodeName(0), "--encapsulation", "crossSubnet",
		"--conflist", n.conflist())
	client := &http.Client{Timeout: 10 * time.Second}
	deadline := began.Add(3 * time.Minute)
	for {
		resp, err := client.Get("http://127.0.0.1:6786/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			n.Fatalf("the agent isn't ready within %v: %v", time.Since(began), err)
		}
		time.Sleep(2 * time.Millisecond)
	}
	ready := time.Now()
	s := started{Ready: ready.Sub(began).Seconds(), Memory: n.memory()}
	var listed time.Time
	for _, kind := range []string{"pods", "namespaces", "nodes", "networkpolicies"} {
		at := n.server.Sent()[kind].Listed
		if at.Before(began) {
			n.Fatalf("the agent is ready without a list of %s", kind)
		}
		if at.After(listed) {
			listed = at
		}
	}
	s.AfterLists = ready.Sub(listed).Seconds()
	s.IPTables = n.iptables(client)
	return s
}

func (n *node) iptables(client *http.Client) string {
	resp, err := client.Get("http://127.0.0.1:6786/metrics")
	if err != nil {
		n.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		n.Fatal(err)
	}
	if m := regexp.MustCompile(`weir_info{iptables="([^"]*)"}`).FindSubmatch(text); m != nil {
		return string(m[1])
	}
	return "unknown"
}

func (n *node) fill() []float64 {
	data, err := os.ReadFile(n.conflist())
	if err == nil {
		n.network, err = libcni.NetworkConfFromBytes(data)
	}
	if err != nil {
		n.Fatal(err)
	}
	var took []float64
	for _, i := range n.cluster.Local() {
		p := cluster.PodBase{Cluster: n.cluster}.At(i, 0).(*corev1.Pod)
		_, _, ms := n.attach(p)
		took = append(took, ms)
	}
	var ips []string
	var paths []string
	for _, name := range []string{"server", "client"} {
		p := cluster.NewPod("probes", name, name, types.UID("uid-of-"+name))
		p.Spec.NodeName = cluster.NodeName(0)
		n.server.Put(p)
		path, ip, _ := n.attach(p)
		if ip == "" {
			n.Fatalf("the pod of the probes, %s, can't be added", name)
		}
		ips, paths = append(ips, ip), append(paths, path)
	}
	n.probeServer = net.JoinHostPort(ips[0], "8080")
	n.arrivals = n.listen(paths[0], n.probeServer)
	n.Logf("probe: %s from %s and %s", n.probeServer, ips[1], n.remote.Status.PodIP)
	return took
}

// attach attaches the pod, and tries again while the plugin refuses. ms is the time of all attempts. If attach gives
// up, ip is empty.
func (n *node) attach(p *corev1.Pod) (path, ip string, ms float64) {
	path = nodetest.NewNS(n, p.Namespace+"."+p.Name)
	began := time.Now()
	conf := runtimeConf(p, path)
	result, err := n.cni.AddNetworkList(context.Background(), n.network, conf)
	for err != nil && time.Since(began) < n.patience {
		n.Logf("add %s/%s, after %v: %v", p.Namespace, p.Name, time.Since(began), err)
		if err := n.cni.DelNetworkList(context.Background(), n.network, conf); err != nil {
			n.Fatal(err)
		}
		result, err = n.cni.AddNetworkList(context.Background(), n.network, conf)
	}
	ms = float64(time.Since(began).Microseconds()) / 1000
	if err != nil {
		n.Logf("add %s/%s: gave up after %v: %v", p.Namespace, p.Name, time.Since(began), err)
		return path, "", ms
	}
	data, err := json.Marshal(result)
	if err != nil {
		n.Fatal(err)
	}
	var r struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal(data, &r); err != nil || len(r.IPs) == 0 {
		n.Fatalf("add %s/%s: %s, %v", p.Namespace, p.Name, data, err)
	}
	prefix, err := netip.ParsePrefix(r.IPs[0].Address)
	if err != nil {
		n.Fatal(err)
	}
	return path, prefix.Addr().String(), ms
}

func (n *node) detach(p *corev1.Pod) {
	path := filepath.Join("/run/netns", p.Namespace+"."+p.Name)
	if err := n.cni.DelNetworkList(context.Background(), n.network, runtimeConf(p, path)); err != nil {
		n.Fatal(err)
	}
	nodetest.DelNS(n, path)
}

func runtimeConf(p *corev1.Pod, path string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.Namespace + "-" + p.Name, NetNS: path, IfName: "eth0",
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", "x"},
			{"K8S_POD_UID", string(p.UID)},
		},
	}
}

// adds returns the time of each ADD in ms. The API server knows each pod before its ADD.
func (n *node) adds(count int) []float64 {
	var took []float64
	for range count {
		n.created++
		name := fmt.Sprintf("added-%d", n.created)
		p := cluster.NewPod(cluster.NamespaceName(0), name, "app-0", types.UID("uid-of-"+name))
		p.Spec.NodeName = cluster.NodeName(0)
		n.server.Put(p)
		_, _, ms := n.attach(p)
		took = append(took, ms)
		n.detach(p)
		n.server.Delete(p)
	}
	return took
}

func policy(name string, peers ...networkingv1.NetworkPolicyPeer) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
		Namespace: "probes", Name: name, UID: types.UID("uid-of-" + name),
	}}
	p.Spec.PodSelector = selects("app", "server")
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	if len(peers) > 0 {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers}}
	}
	return p
}

func selects(key, value string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

type effects struct{ Deny, Allow []float64 }

func (e *effects) add(allows bool, d time.Duration) {
	ms := float64(d.Microseconds()) / 1000
	if allows {
		e.Allow = append(e.Allow, ms)
	} else {
		e.Deny = append(e.Deny, ms)
	}
}

// policies measures how long it takes until a new or deleted policy has an effect on packets between two pods.
func (n *node) policies() effects {
	var e effects
	client := selects("app", "client")
	deny, allow := policy("deny"), policy("allow", networkingv1.NetworkPolicyPeer{PodSelector: &client})
	from := filepath.Join("/run/netns", "probes.client")
	for _, c := range []struct {
		allows bool
		change func() time.Time
	}{
		{false, func() time.Time { return n.put(deny) }},
		{true, func() time.Time { return n.put(allow) }},
		{false, func() time.Time { return n.remove(allow) }},
		{true, func() time.Time { return n.remove(deny) }},
	} {
		e.add(c.allows, n.until(from, "", c.allows, c.change))
	}
	return e
}

func (n *node) peers() effects {
	var e effects
	peer := selects("role", "peer")
	allow := policy("allow-peer", networkingv1.NetworkPolicyPeer{PodSelector: &peer})
	n.put(allow)
	label := func(role string) time.Time {
		at := time.Now()
		n.server.Update(n.remote, func(o apiserver.Object) { o.GetLabels()["role"] = role })
		return at
	}
	again := n.remote.DeepCopy()
	again.Labels["role"], again.UID = "peer", types.UID(fmt.Sprintf("uid-of-remote-%d", n.created))
	n.created++
	for _, c := range []struct {
		allows bool
		change func() time.Time
	}{
		{true, func() time.Time { return label("peer") }},
		{false, func() time.Time { return label("none") }},
		{true, func() time.Time { return label("peer") }},
		{false, func() time.Time { return n.remove(n.remote) }},
		{true, func() time.Time { return n.put(again) }},
		{false, func() time.Time { return label("none") }},
	} {
		e.add(c.allows, n.until(n.Outside, n.remote.Status.PodIP, c.allows, c.change))
	}
	n.remove(allow)
	return e
}

func (n *node) put(o apiserver.Object) time.Time {
	at := time.Now()
	n.server.Put(o)
	return at
}

func (n *node) remove(o apiserver.Object) time.Time {
	at := time.Now()
	n.server.Delete(o)
	return at
}

// background replaces the running stream of events by one with this rate (events per second) and mix, such as
// 50:40:10. If rate is 0, it only ends the running stream.
func (n *node) background(rate float64, parts string) {
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
	if rate > 0 {
		mix, err := cluster.ParseMix(parts)
		if err != nil {
			n.Fatal(err)
		}
		n.stop = n.stream.Background(rate, mix)
	}
}

// toggle creates and deletes a policy again and again for the time d, and returns the agent's CPU time. rate is the
// number of changes per second.
func (n *node) toggle(rate float64, d time.Duration) cpuUse {
	ticker := time.NewTicker(time.Duration(float64(time.Second) / rate))
	defer ticker.Stop()
	p := policy("toggled")
	before := cpuTime(n, n.AgentPID())
	began := time.Now()
	for i := 0; time.Since(began) < d; i++ {
		<-ticker.C
		if i%2 == 0 {
			n.put(p)
		} else {
			n.remove(p)
		}
	}
	use := cpuUse{Seconds: cpuTime(n, n.AgentPID()) - before, Wall: time.Since(began).Seconds()}
	n.remove(p)
	return use
}
