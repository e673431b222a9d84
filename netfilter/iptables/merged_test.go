package iptables

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

func crowded(policies, selector int, port func(i int) int) policy.State {
	var s policy.State
	web := map[string]string{"app": "web"}
	addr := netip.MustParseAddr("10.88.0.2")
	s.Namespaces = []policy.Namespace{{Name: "x"}}
	s.Pods = []policy.Pod{{Namespace: "x", Name: "web", Labels: web, Addresses: []netip.Addr{addr}}}
	s.Endpoints = []policy.Endpoint{{
		ID: "web:eth0", Pod: policy.PodRef{Namespace: "x", Name: "web"}, Enforcement: conf.Strict,
		Addresses: []policy.Address{{Addr: addr, Subnet: netip.MustParsePrefix("10.88.0.0/24")}},
	}}
	for i := range policies + 2 {
		s.Pods = append(s.Pods, policy.Pod{
			Namespace: "x", Name: fmt.Sprint("peer", i), Labels: map[string]string{"number": fmt.Sprint(i)},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 89, byte(i >> 8), byte(i)})},
		})
	}
	for i := range policies {
		number := i
		if i == 7 {
			number = selector
		}
		p := intstr.FromInt32(int32(port(i)))
		s.Policies = append(s.Policies, policytest.Letting(fmt.Sprintf("p%04d", i), web, policytest.Selectors(number, 1),
			networkingv1.NetworkPolicyPort{Port: &p}))
	}
	return s
}

// BenchmarkPolicyAmongMany measures the time to change one of 1,000 policies that isolate the same pod, with and
// without merged sets. Run it as root: go test ./netfilter/iptables -run - -bench PolicyAmongMany
func BenchmarkPolicyAmongMany(b *testing.B) {
	for name, port := range map[string]func(i int) int{
		"one port": func(int) int { return 80 }, "ports": func(i int) int { return 1 + i },
	} {
		for _, merged := range []bool{false, true} {
			for _, flavour := range []Flavour{NFT, Legacy} {
				b.Run(fmt.Sprintf("%s/merged=%v/%s", name, merged, flavour), func(b *testing.B) {
					// The goroutine stays locked to its thread, so that the thread and its network namespace end with the benchmark.
					runtime.LockOSThread()
					if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
						b.Fatal(err)
					}
					d, err := New(b.Context())
					if err != nil {
						b.Fatal(err)
					}
					defer d.Close()
					d.Flavour = flavour
					states := [2]ruleset.Ruleset{}
					for i := range states {
						states[i] = policy.Compile(crowded(1000, 1000+i, port))
					}
					m := ruleset.NewMerger(ruleset.UsualBounds())
					apply := func(i int) (merging, applying time.Duration) {
						want, began := states[i%2], used(b)
						if merged {
							want = m.Merge(want, nil)
						}
						merging = used(b) - began
						if _, err := d.Apply(b.Context(), want, netfilter.Trust); err != nil {
							b.Fatal(err)
						}
						return merging, used(b) - began - merging
					}
					apply(0)
					var sums [2]time.Duration
					i := 0
					for b.Loop() {
						i++
						merging, applying := apply(i)
						sums[0], sums[1] = sums[0]+merging, sums[1]+applying
					}
					b.ReportMetric(float64(sums[0].Microseconds())/1000/float64(b.N), "merge-CPU-ms/op")
					b.ReportMetric(float64(sums[1].Microseconds())/1000/float64(b.N), "apply-CPU-ms/op")
				})
			}
		}
	}
}
