package explain

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// TestAgreesWithTheEvaluator: on random clusters, an explanation has the same result as the evaluator. Connections from
// a node to its own pods, and addresses in the pods' network that no pod has, are left out.
func TestAgreesWithTheEvaluator(t *testing.T) {
	results, itself := map[Result]int{}, 0
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 11))
		state := policytest.State(r)
		c := Cluster{Objects: state.Objects, Endpoints: state.Endpoints, Node: state.Node}
		whole := verdict.New(state)
		for _, p := range policytest.Probes(r, state, 1) {
			if p.Port == 0 || (p.Proto != ruleset.TCP && p.Proto != ruleset.UDP) {
				continue
			}
			q := Query{
				From: Ref{Kind: EndAddress, Address: p.Src}, To: Ref{Kind: EndAddress, Address: p.Dst},
				Port: Port{Number: p.Port, Proto: p.Proto},
			}
			e, err := Explain(c, q)
			if err != nil || len(e.Paths) != 1 {
				t.Fatalf("seed %d: %+v: %v, %+v", seed, p, err, e)
			}
			path := e.Paths[0]
			v := whole.Evaluate(verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port})
			vacant := path.Sides[0].Reason == Vacant || path.Sides[1].Reason == Vacant
			if vacant && (path.Result == Allowed || path.From.Pod != "" && path.To.Pod != "") {
				t.Fatalf("seed %d: %+v", seed, path)
			}
			if path.Sides[1].Reason != FromNode && !vacant && (path.Result == Allowed) != v.Allowed() {
				t.Fatalf("seed %d: %+v\nexplained: %+v\nevaluated:\n%s", seed, p, path, v)
			}
			for _, s := range path.Sides {
				if s.Result == Dropped && s.Reason == Isolated && len(s.Nearest) == 0 && s.Change == "" {
					t.Errorf("seed %d: %+v: nothing says what would allow it: %+v", seed, p, s)
				}
				if s.Result == Allowed && (s.Change != "" || len(s.Nearest)+len(s.OnlyAudited) > 0) {
					t.Errorf("seed %d: %+v is allowed, and the explanation says what would allow it: %+v", seed, p, s)
				}
				if s.Reason == Itself {
					itself++
				}
			}
			results[e.Result]++
		}
	}
	if results[Allowed] < 500 || results[Dropped] < 500 || itself < 50 {
		t.Errorf("too few cases: %v, %d of a pod to itself", results, itself)
	}
}

// TestConcernsServices: if a query names a Service by an address or a nodePort, the pods of the Service's namespace
// are among those that the explanation needs (Query.Concerns).
func TestConcernsServices(t *testing.T) {
	c := Cluster{Services: []policy.Service{{
		Namespace: "ns-1", Name: "web", Selector: map[string]string{"app": "web"},
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports:      []policy.ServicePort{{Proto: ruleset.TCP, Port: 80, NodePort: 30080}},
	}}}
	c.Nodes = []policy.Node{{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}
	for to, want := range map[string]bool{
		"10.96.0.1:80": true, "node/n1:30080": true, "192.0.2.1:30080": true, "node/n1:22": false, "10.96.0.2:80": false,
	} {
		q, err := Parse("world", to, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := q.Concerns(c)(&policy.Pod{Namespace: "ns-1", Name: "web-0"}); got != want {
			t.Errorf("%s: %v", to, got)
		}
	}
}

// TestConcerns: an explanation has the same result if the cluster has only the pods that the explanation needs
// (Query.Concerns).
func TestConcerns(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 12))
		state := policytest.State(r)
		c := Cluster{Objects: state.Objects, Endpoints: state.Endpoints, Node: state.Node}
		for _, p := range policytest.Probes(r, state, 1)[:4] {
			q := Query{
				From: Ref{Kind: EndAddress, Address: p.Src}, To: Ref{Kind: EndAddress, Address: p.Dst},
				Port: Port{Number: 80, Proto: ruleset.TCP},
			}
			want, err := Explain(c, q)
			if err != nil {
				t.Fatal(err)
			}
			fewer := c
			fewer.Pods = nil
			for range 2 { // as in the agent: the second call gets the pods for which the first call has asked
				concerns := q.Concerns(fewer)
				fewer.Pods = nil
				for i := range c.Pods {
					if o := &c.Pods[i]; concerns(o) {
						fewer.Pods = append(fewer.Pods, *o)
					}
				}
			}
			got, err := Explain(fewer, q)
			if err != nil || got.Paths[0].Result != want.Paths[0].Result {
				t.Fatalf("seed %d: %+v: %v\ngot  %+v\nwant %+v", seed, p, err, got, want)
			}
		}
	}
}

// TestOwnHostPort: an agent without Kubernetes doesn't know the names of nodes. A hostPort at the address of the
// agent's node then leads to a pod with an attachment on this node.
func TestOwnHostPort(t *testing.T) {
	node, elsewhere := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")
	c := Cluster{Own: []netip.Addr{node}}
	for i, name := range []string{"away", "client", "server"} {
		pod := policy.Pod{Namespace: "ns-1", Name: name}
		if name != "client" {
			pod.HostPorts = []policy.HostPort{{Proto: ruleset.TCP, Port: 80, Target: 8080}}
		}
		c.Pods = append(c.Pods, pod)
		if name != "away" {
			c.Endpoints = append(c.Endpoints, policy.Endpoint{
				Pod:       policy.PodRef{Namespace: "ns-1", Name: name},
				Addresses: []policy.Address{{Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(2 + i)})}},
			})
		}
	}
	for to, want := range map[Ref]string{
		{Kind: EndAddress, Address: node}: "ns-1/server 8080", {Kind: EndAddress, Address: elsewhere}: " 80",
	} {
		q := Query{
			From: Ref{Kind: EndPod, Namespace: "ns-1", Name: "client"}, To: to, Port: Port{Number: 80, Proto: ruleset.TCP},
		}
		e, err := Explain(c, q)
		if err != nil || len(e.Paths) != 1 {
			t.Fatalf("%v: %+v", err, e)
		}
		if got := fmt.Sprint(e.Paths[0].To.Pod, " ", e.Paths[0].Port); got != want {
			t.Errorf("%s: got %q, want %q", to, got, want)
		}
	}
}

// TestHostPortOfTheAgentsNode: a pod of another node sends to a hostPort of the agent's node. The packets have the
// address of the sender's node as their source. So rules for the sender's labels don't allow the connection.
func TestHostPortOfTheAgentsNode(t *testing.T) {
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	c := Cluster{Node: "here", Own: []netip.Addr{here}}
	c.Nodes = []policy.Node{
		{Name: "here", Addresses: []netip.Addr{here}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}},
		{Name: "there", Addresses: []netip.Addr{there}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")}},
	}
	server, client := shopPod("shop", "server", "10.0.1.2"), shopPod("shop", "client", "10.0.2.2")
	server.NodeName, client.NodeName = "here", "there"
	server.HostPorts = []policy.HostPort{{Proto: ruleset.TCP, Port: 3080, Target: 80}}
	c.Pods = []policy.Pod{server, client}
	c.Endpoints = []policy.Endpoint{{
		Pod: policy.PodRef{Namespace: "shop", Name: "server"}, Addresses: []policy.Address{{Addr: server.Addresses[0]}},
	}}
	for _, label := range []string{"client", "other"} {
		c.Policies = []*networkingv1.NetworkPolicy{{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "server"},
			Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{
					PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": label}},
				}},
			}}},
		}}
		e := ask(t, c, "shop/client", "node/here:3080")
		last := e.Paths[len(e.Paths)-1]
		if last.To.Pod != "shop/server" || last.Result != Dropped {
			t.Errorf("a rule for %s: %+v", label, last)
		}
	}
}

// TestPortNameAtAddress: the name of a port is also known if the query names the pod by its address.
func TestPortNameAtAddress(t *testing.T) {
	c := Cluster{}
	c.Pods = []policy.Pod{shopPod("shop", "web", "10.0.0.2"), shopPod("shop", "db", "10.0.0.3")}
	c.Pods[1].Ports = []policy.NamedPort{{Name: "pg", Proto: ruleset.TCP, Number: 5432}}
	if p := ask(t, c, "shop/web", "10.0.0.3:pg").Paths[0]; p.Port != 5432 || p.To.Pod != "shop/db" {
		t.Errorf("%+v", p)
	}
}

// TestWorldNeedsANetwork: for a dropped connection from the world, Change doesn't name the address that stands for the
// world, because a rule needs the network of the hosts.
func TestWorldNeedsANetwork(t *testing.T) {
	c := Cluster{}
	c.Pods = []policy.Pod{{Namespace: "ns-1", Name: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.2")}}}
	c.Policies = []*networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "ns-1", Name: "deny"}}}
	q, err := Parse("world", "ns-1/web:80", "")
	if err != nil {
		t.Fatal(err)
	}
	e, err := Explain(c, q)
	if err != nil || len(e.Paths) != 1 {
		t.Fatalf("%v: %+v", err, e)
	}
	change := e.Paths[0].Sides[1].Change
	if !strings.Contains(change, "from the network of these hosts for TCP port 80") {
		t.Errorf("%q", change)
	}
}

// TestEndingEndpoints: if no endpoint is ready, kube-proxy uses endpoints that are ending and still serve. With a
// traffic policy Local, only endpoints of the receiving node count. DNS never returns ending endpoints.
func TestEndingEndpoints(t *testing.T) {
	at := func(a, node string, ready, ending bool) policy.ServiceEndpoint {
		return policy.ServiceEndpoint{
			Address: netip.MustParseAddr(a), Node: node, Ready: ready, Ending: ending,
			Ports: []policy.NamedPort{{Proto: ruleset.TCP, Number: 8080}},
		}
	}
	ended, ending := at("10.0.1.1", "n1", false, false), at("10.0.1.2", "n1", false, true)
	ready := at("10.0.2.2", "n2", true, false)
	for _, tc := range []struct {
		endpoints       []policy.ServiceEndpoint
		local, headless bool
		want            string
	}{
		{[]policy.ServiceEndpoint{ended}, false, false, ""},
		{[]policy.ServiceEndpoint{ended, ending}, false, false, "10.0.1.2"},
		{[]policy.ServiceEndpoint{ending, ready}, false, false, "10.0.2.2"},
		{[]policy.ServiceEndpoint{ending, ready}, true, false, "10.0.1.2"},
		{[]policy.ServiceEndpoint{ending, ready}, false, true, "10.0.2.2"},
		{[]policy.ServiceEndpoint{ending}, false, true, ""},
	} {
		c := Cluster{Services: []policy.Service{{
			Namespace: "ns-1", Name: "web", InternalLocal: tc.local, Headless: tc.headless, Endpoints: tc.endpoints,
			Ports: []policy.ServicePort{{Proto: ruleset.TCP, Port: 80}},
		}}}
		c.Nodes = []policy.Node{{Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}}
		c.Pods = []policy.Pod{{
			Namespace: "ns-1", Name: "client", NodeName: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.1.9")},
		}}
		q, err := Parse("ns-1/client", "svc/ns-1/web:80", "")
		if err != nil {
			t.Fatal(err)
		}
		e, err := Explain(c, q)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range e.Paths {
			got = append(append(got, p.To.Address.String()), p.Alike...)
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%+v: got %q, want %q; notes %q", tc, got, tc.want, e.Notes)
		}
	}
}

// TestKernelAgrees: if a kernel has the compiler's sets and rules, there is no difference. There is a difference if a
// pod is missing in a class set, or if no rule drops a connection that the policies don't allow.
func TestKernelAgrees(t *testing.T) {
	checked, lost, vacant := 0, 0, 0
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 13))
		state := policytest.State(r)
		c := Cluster{Objects: state.Objects, Endpoints: state.Endpoints, Node: state.Node}
		for _, of := range policytest.Of {
			c.Own = append(c.Own, of.Node)
		}
		want := policy.Compile(state)
		if seed%2 == 0 {
			want = policytest.Bounds(r).Merge(want, nil)
		}
		view := View{Node: "here", Want: want, Have: want, Links: map[netip.Addr]ruleset.Link{}}
		for _, e := range state.Endpoints {
			for _, a := range e.Addresses {
				view.Links[a.Addr] = policy.LinkOf(e)
			}
		}
		for _, p := range policytest.Probes(r, state, 1) {
			q := Query{
				From: Ref{Kind: EndAddress, Address: p.Src}, To: Ref{Kind: EndAddress, Address: p.Dst},
				Port: Port{Number: max(p.Port, 1), Proto: ruleset.TCP},
			}
			e, err := Explain(c, q)
			if err != nil {
				t.Fatal(err)
			}
			e.AddKernel(view)
			k := e.Paths[0].Kernel
			if k == nil {
				continue
			}
			checked++
			if e.Differs() || k.Unknown != "" {
				t.Fatalf("seed %d: %s to %s port %d: %q %s\n%+v", seed, p.Src, p.Dst, q.Port.Number, k.Differences, k.Unknown,
					e.Paths[0])
			}
			if e.Paths[0].Sides[1].Reason == Vacant && e.Paths[0].Sides[0].Result == Allowed {
				vacant++
			}
			if k.Result == Dropped {
				tampered := view
				tampered.Have = opened(want)
				if e.AddKernel(tampered); e.Paths[0].Kernel.Result != Allowed || !e.Differs() {
					t.Fatalf("seed %d: without a drop nothing differs: %+v", seed, e.Paths[0].Kernel)
				}
			}
			if e.Paths[0].From.Here && e.Paths[0].Sides[0].Reason == Isolated {
				lost++
				tampered := view
				tampered.Have = without(want, k.Classes[0].Set)
				if e.AddKernel(tampered); !e.Differs() {
					t.Fatalf("seed %d: without %s nothing differs: %+v", seed, k.Classes[0].Set, e.Paths[0].Kernel)
				}
			}
		}
	}
	if checked < 500 || lost < 100 || vacant < 5 {
		t.Errorf("only %d packets checked, %d with a lost class, and %d to an address that no pod has", checked, lost, vacant)
	}
}

// opened replaces all rules that drop packets by rules that return.
func opened(r ruleset.Ruleset) ruleset.Ruleset {
	r.Chains = slices.Clone(r.Chains)
	for i := range r.Chains {
		r.Chains[i].Rules = slices.Clone(r.Chains[i].Rules)
		for n := range r.Chains[i].Rules {
			if r.Chains[i].Rules[n].Action == ruleset.Drop {
				r.Chains[i].Rules[n].Action = ruleset.Return
			}
		}
	}
	return r
}

func without(r ruleset.Ruleset, set string) ruleset.Ruleset {
	r.Sets = slices.Clone(r.Sets)
	for i := range r.Sets {
		if r.Sets[i].Name == set {
			r.Sets[i].Entries = ruleset.EntriesOf()
		}
	}
	return r
}

// TestChainedPodIsNotMasqueraded: weir doesn't masquerade the packets of a chained attachment. So the explanation has
// no note about masquerading.
func TestChainedPodIsNotMasqueraded(t *testing.T) {
	for _, chained := range []bool{false, true} {
		pod := netip.MustParseAddr("10.0.0.2")
		c := Cluster{Objects: policy.Objects{Pods: []policy.Pod{{Namespace: "ns-1", Name: "a"}}}}
		c.Endpoints = []policy.Endpoint{{
			Pod: policy.PodRef{Namespace: "ns-1", Name: "a"}, Chained: chained,
			Addresses: []policy.Address{{Addr: pod, Subnet: netip.PrefixFrom(pod, 32)}},
		}}
		q, err := Parse("ns-1/a", "203.0.113.1:80", "")
		if err != nil {
			t.Fatal(err)
		}
		e, err := Explain(c, q)
		if says := strings.Contains(strings.Join(e.Notes, "\n"), "weir masquerades"); err != nil || says == chained {
			t.Errorf("chained: %v, %v, %q", chained, err, e.Notes)
		}
	}
}
