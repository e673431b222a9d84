package suggest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

func cluster(r *rand.Rand) policy.Objects {
	var o policy.Objects
	for _, n := range []string{"shop", "lab"} {
		o.Namespaces = append(o.Namespaces, policy.Namespace{Name: n, Labels: map[string]string{corev1.LabelMetadataName: n}})
	}
	o.Nodes = []policy.Node{{Name: "n", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}}}
	for i := range 4 + r.IntN(10) {
		p := policy.Pod{
			Namespace: []string{"shop", "shop", "lab"}[r.IntN(3)], Name: fmt.Sprint("p", i), NodeName: "n",
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 1, byte(i)})}, Labels: map[string]string{},
		}
		for _, k := range []string{"app", "tier", "x", "pod-template-hash"} {
			if r.IntN(3) > 0 {
				p.Labels[k] = fmt.Sprint(r.IntN(2))
			}
		}
		o.Pods = append(o.Pods, p)
	}
	return o
}

var ports = []uint16{53, 80, 443}

var world = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}

func ends(o policy.Objects) (all []End) {
	for i := range o.Pods {
		p := &o.Pods[i]
		all = append(all, End{Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, Address: p.Addresses[0]})
	}
	for _, a := range world {
		all = append(all, End{Address: a})
	}
	return all
}

func same(e End) string {
	if !e.isPod() {
		return e.Address.String()
	}
	labels := maps.Clone(e.Labels)
	delete(labels, "pod-template-hash")
	return fmt.Sprint(e.Namespace, labels)
}

// TestExact: the suggested policies allow a connection from or to the namespace if and only if a flow has the same
// protocol and port, and the same workloads or addresses.
func TestExact(t *testing.T) {
	allowed, denied := 0, 0
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 41))
		o := cluster(r)
		all := ends(o)
		seen := map[string]bool{}
		key := func(from, to End, proto ruleset.Protocol, port uint16) string {
			return fmt.Sprint(same(from), " ", same(to), " ", proto, port)
		}
		var flows []Flow
		for range r.IntN(20) {
			f := Flow{
				From: all[r.IntN(len(all))], To: all[r.IntN(len(all))], Port: ports[r.IntN(len(ports))],
				Protocol: []ruleset.Protocol{ruleset.TCP, ruleset.UDP}[r.IntN(2)], Count: 1,
			}
			flows = append(flows, f)
			if f.From.Address != f.To.Address {
				seen[key(f.From, f.To, f.Protocol, f.Port)] = true
			}
		}
		gone := End{Namespace: "shop", Name: "gone", Labels: map[string]string{"app": "0", "y": "1"}, Address: world[0]}
		flows = append(flows, Flow{From: gone, To: all[0], Port: 80, Protocol: ruleset.TCP})
		result := Policies("shop", o.Pods, flows)
		for _, s := range result.Suggestions {
			o.Policies = append(o.Policies, s.Policy)
		}
		evaluator := verdict.New(policy.State{Objects: o})
		for _, from := range all {
			for _, to := range all {
				if from.Address == to.Address || from.Namespace != "shop" && to.Namespace != "shop" {
					continue
				}
				for _, port := range ports {
					for _, proto := range []ruleset.Protocol{ruleset.TCP, ruleset.UDP} {
						got := evaluator.Evaluate(verdict.Packet{Src: from.Address, Dst: to.Address, Proto: proto, Port: port}).Allowed()
						if want := seen[key(from, to, proto, port)]; got != want {
							t.Fatalf("seed %d: %s to %s %s %d: allowed %v, seen %v\n%+v", seed, from, to, proto, port, got, want,
								o.Policies)
						} else if got {
							allowed++
						} else {
							denied++
						}
					}
				}
			}
		}
	}
	if allowed < 300 || denied < 10_000 {
		t.Errorf("only %d allowed and %d denied", allowed, denied)
	}
	t.Logf("suggest: 150 clusters, %d connections allowed, %d denied, 0 differences", allowed, denied)
}

// TestLeft: flows that a policy's ports can't name, such as ICMP, are in Left. A flow from a pod to itself gets no
// rule, and isn't in Left.
func TestLeft(t *testing.T) {
	a := End{Namespace: "shop", Name: "a", Labels: map[string]string{"app": "a"}, Address: netip.MustParseAddr("10.0.0.1")}
	r := Policies("shop", nil, []Flow{
		{From: a, To: End{Address: world[0]}, Protocol: "icmp", Count: 3},
		{From: a, To: a, Protocol: ruleset.TCP, Port: 80},
	})
	if len(r.Left) != 1 || r.Left[0].Count != 3 || len(r.Suggestions) != 1 {
		t.Errorf("%+v", r)
	}
}
