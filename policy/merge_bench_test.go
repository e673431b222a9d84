package policy_test

import (
	"fmt"
	"net/netip"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

// BenchmarkMerger measures the CPU time that the engine and the merger need for a change of a peer or a policy, while
// 1,000 policies isolate one pod.
//
// Run it as: go test ./policy -run - -bench Merger
func BenchmarkMerger(b *testing.B) {
	const policies = 1000
	web := map[string]string{"app": "web"}
	number := func(port int) networkingv1.NetworkPolicyPort {
		p := intstr.FromInt32(int32(port))
		return networkingv1.NetworkPolicyPort{Port: &p}
	}
	for shape, port := range map[string]func(i int) int{
		"one port": func(int) int { return 80 }, "ports": func(i int) int { return 1 + i },
	} {
		make := func(i, selector int) *policy.Delta {
			d := policy.NewDelta()
			np := policytest.Letting(fmt.Sprint("p", i), web, policytest.Selectors(selector, 1), number(port(i)))
			d.Policies[policy.Name{Namespace: "x", Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
			return d
		}
		e, m := policy.NewEngine(""), ruleset.NewMerger(ruleset.UsualBounds())
		e.Apply(policy.Difference(policy.Objects{}, policy.Objects{Namespaces: []policy.Namespace{{Name: "x"}}}))
		e.Apply(one(&policy.Pod{
			Namespace: "x", Name: "web", Labels: web, Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.2")},
		}))
		for i := range 4 * policies {
			e.Apply(one(&policy.Pod{
				Namespace: "x", Name: fmt.Sprint("peer", i), Addresses: []netip.Addr{peer(i)},
				Labels: map[string]string{"number": fmt.Sprint(i % policies)},
			}))
		}
		e.SetEndpoints([]policy.Endpoint{{
			ID: "web:eth0", Pod: policy.PodRef{Namespace: "x", Name: "web"}, Enforcement: conf.Strict,
			Addresses: []policy.Address{{
				Addr: netip.MustParseAddr("10.88.0.2"), Subnet: netip.MustParsePrefix("10.88.0.0/24"),
			}},
		}})
		for i := range policies {
			e.Apply(make(i, i))
		}
		m.Merge(e.Ruleset(), nil)
		event := func(name string, change func(i int) *policy.Delta) {
			b.Run(shape+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				var engine int64
				began := cpu(b)
				for i := 0; b.Loop(); i++ {
					before := cpu(b)
					e.Apply(change(i))
					r := e.Ruleset()
					engine += cpu(b) - before
					m.Merge(r, nil)
				}
				b.ReportMetric(float64(engine)/float64(b.N), "engine-cpu-ns/op")
				b.ReportMetric(float64(cpu(b)-began-engine)/float64(b.N), "merger-cpu-ns/op")
			})
		}
		event("a peer changes", func(i int) *policy.Delta {
			return one(&policy.Pod{
				Namespace: "x", Name: "peer0", Addresses: []netip.Addr{peer(0)},
				Labels: map[string]string{"number": fmt.Sprint(i % 2)},
			})
		})
		event("a policy changes", func(i int) *policy.Delta { return make(7, i%policies) })
		event("a policy comes or goes", func(i int) *policy.Delta {
			d := make(7, 7)
			if i%2 == 0 {
				clear(d.Policies)
				d.Policies[policy.Name{Namespace: "x", Name: "p7"}] = nil
			}
			return d
		})
	}
}
