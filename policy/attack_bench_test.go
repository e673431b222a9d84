package policy_test

import (
	"fmt"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// hostile has policies with which a tenant could keep a node's agent busy.
var hostile = map[string]func() []*networkingv1.NetworkPolicy{
	"none": func() []*networkingv1.NetworkPolicy { return nil },
	"one policy, 900 peers NotIn 100 values": func() []*networkingv1.NetworkPolicy {
		return []*networkingv1.NetworkPolicy{hostilePolicy(0, 0, 900, notIn)}
	},
	"200 policies x 1000 peers": func() []*networkingv1.NetworkPolicy {
		return hostilePolicies(1, 200, 1000, equals)
	},
	"17 namespaces x 4 policies x 1000 selectors": func() []*networkingv1.NetworkPolicy {
		return hostilePolicies(17, 4, 1000, equals)
	},
	"one policy, 1000 namespaces NotIn": func() []*networkingv1.NetworkPolicy {
		return []*networkingv1.NetworkPolicy{hostilePolicy(0, 0, 1000, namespaceNotIn)}
	},
	"40 policies x 16000 ipBlocks": func() []*networkingv1.NetworkPolicy {
		return hostilePolicies(1, 40, 16000, ipBlock)
	},
}

func hostilePolicies(
	namespaces, policies, peers int, peer func(n int) networkingv1.NetworkPolicyPeer,
) (all []*networkingv1.NetworkPolicy) {
	for ns := range namespaces {
		for i := range policies {
			all = append(all, hostilePolicy(ns, i, peers, peer))
		}
	}
	return all
}

func hostilePolicy(ns, i, peers int, peer func(n int) networkingv1.NetworkPolicyPeer) *networkingv1.NetworkPolicy {
	np := cityPolicy(ns, i)
	np.Name, np.Spec.PodSelector = fmt.Sprint("hostile", i), metav1.LabelSelector{}
	np.Spec.Ingress[0].From = nil
	for p := range peers {
		np.Spec.Ingress[0].From = append(np.Spec.Ingress[0].From, peer((ns*1000+i)*peers+p))
	}
	return np
}

func notIn(n int) networkingv1.NetworkPolicyPeer {
	values := make([]string, 100)
	for i := range values {
		values[i] = fmt.Sprint("v", n*100+i)
	}
	return networkingv1.NetworkPolicyPeer{
		NamespaceSelector: &metav1.LabelSelector{},
		PodSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: values},
		}},
	}
}

func equals(n int) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{
		NamespaceSelector: &metav1.LabelSelector{},
		PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"x": fmt.Sprint(n)}},
	}
}

func namespaceNotIn(n int) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{
		NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "x", Operator: metav1.LabelSelectorOpNotIn, Values: []string{fmt.Sprint(n)}},
		}},
		PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"y": "z"}},
	}
}

func ipBlock(n int) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{
		IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("%d.%d.%d.%d/31", 11+n>>23, n>>15&255, n>>7&255, n<<1&255)},
	}
}

// BenchmarkTenants measures how long a change of one tenant's policy takes, while other tenants have hostile policies.
func BenchmarkTenants(b *testing.B) {
	for name, policies := range hostile {
		b.Run(name, func(b *testing.B) {
			e, all := city(10_000)
			e.Apply(all)
			e.Ruleset()
			d := policy.NewDelta()
			for _, np := range policies() {
				d.Policies[policy.Name{Namespace: np.Namespace, Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
			}
			began := time.Now()
			e.Apply(d)
			e.Ruleset()
			attack := time.Since(began)
			b.ResetTimer()
			for i := range b.N {
				d, np := policy.NewDelta(), cityPolicy(50, i%10)
				np.Name = "other"
				d.Policies[policy.Name{Namespace: np.Namespace, Name: np.Name}] = []*networkingv1.NetworkPolicy{np}
				e.Apply(d)
				e.Ruleset()
			}
			b.ReportMetric(float64(attack.Milliseconds()), "ms/attack")
		})
	}
}

// BenchmarkSlices measures the CPU time of each step of an engine that has just got hostile policies. The steps
// are: a slice (Engine.Slice); giving a parsed policy to the engine (parsed); and adding or deleting another
// tenant's policy that denies everything (denial). Each step includes the merging of sets. For each kind of step,
// the benchmark reports the average, and the time within which 99 of 100 steps end.
func BenchmarkSlices(b *testing.B) {
	for name, list := range hostile {
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			times := map[string][]float64{"slice": nil, "parsed": nil, "denial": nil}
			for range b.N {
				e, all := city(10_000)
				m := ruleset.NewMerger(ruleset.UsualBounds())
				e.Apply(all)
				m.Merge(e.Ruleset(), nil)
				step := func(kind string, f func() ruleset.Ruleset) {
					began := threadTime(b)
					m.Merge(f(), nil)
					times[kind] = append(times[kind], float64(threadTime(b)-began)/1e6)
				}
				deny := cityPolicy(18, 0)
				deny.Name, deny.Spec.Ingress = "deny", nil
				there, gone := policies(deny), policies(deny)
				gone.Policies[policy.Name{Namespace: deny.Namespace, Name: deny.Name}] = nil
				e.Apply(policies(list()...))
				for n := 0; e.Changed() || n < 100; n++ {
					if u := e.NextUnparsed(); u != nil && n%3 == 0 {
						u.Parse()
						step("parsed", func() ruleset.Ruleset { e.TakeParsed(u); return e.Small() })
					}
					began := time.Now()
					step("slice", func() ruleset.Ruleset {
						return e.Slice(func() bool { return time.Since(began) > time.Millisecond })
					})
					if n%5 == 0 {
						step("denial", func() ruleset.Ruleset { e.Apply([]*policy.Delta{there, gone}[n/5%2]); return e.Small() })
					}
				}
			}
			for kind, all := range times {
				sum := 0.0
				for _, t := range all {
					sum += t
				}
				if slices.Sort(all); len(all) > 0 {
					b.ReportMetric(sum/float64(len(all)), kind+"-ms")
					b.ReportMetric(all[len(all)*99/100], kind+"-p99-ms")
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func threadTime(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	const thread = 1 // RUSAGE_THREAD
	if err := syscall.Getrusage(thread, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
