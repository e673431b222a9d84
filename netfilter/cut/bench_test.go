package cut

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/test/nodetest"
)

const connections, localPods, remotePods = 200_000, 100, 8192

// BenchmarkWalk200000 walks through 200,000 allowed connections of 100 pods. It prints the kernel's own processor time
// for the list of connections, and the additional time of a walk.
//
// Run it as root: go test ./netfilter/cut -run - -bench Walk
func BenchmarkWalk200000(b *testing.B) {
	nodetest.Fill(b, connections, func(i int) nodetest.Entry {
		e := nodetest.Entry{
			Src: remotePod(i % remotePods), Dst: localPod(i % localPods), Proto: unix.IPPROTO_TCP,
			Sport: uint16(1024 + i/100), Port: 80, State: established, Status: nodetest.Answered | nodetest.Assured,
		}
		if i%10 >= 7 {
			e.Src, e.Dst, e.Port = e.Dst, netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)}), 443
		}
		return e
	})
	sizes := []int{1, 100, 1_000, 10_000}
	var rules []ruleset.Ruleset
	var links map[netip.Addr]ruleset.Link
	for _, n := range sizes {
		var r ruleset.Ruleset
		r, links = cluster(n)
		rules = append(rules, r)
	}
	walks, dumps := make([]time.Duration, len(sizes)), time.Duration(0)
	for b.Loop() {
		for i := range sizes {
			before := nodetest.CPU(b)
			if n := nodetest.Dump(b); n != connections {
				b.Fatalf("%d connections", n)
			}
			between := nodetest.CPU(b)
			by := NewEvaluator(rules[i], links, nil)
			r, err := Walk(by, func() Evaluator { return by })
			if err != nil || r.Cut+r.Restored+r.Standing > 0 {
				b.Fatalf("%+v, %v", r, err)
			}
			dumps, walks[i] = dumps+between-before, walks[i]+nodetest.CPU(b)-between
		}
	}
	dump := float64(dumps.Milliseconds()) / float64(b.N*len(sizes))
	b.ReportMetric(dump, "dump-cpu-ms")
	for i, n := range sizes {
		b.ReportMetric(float64(walks[i].Milliseconds())/float64(b.N)-dump, fmt.Sprintf("beside-cpu-ms/%d-policies", n))
	}
}

func localPod(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 88, 0, byte(2 + i)}) }

func remotePod(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 89, byte(i >> 8), byte(i)}) }

const selectors = 5_000

func cluster(n int) (ruleset.Ruleset, map[netip.Addr]ruleset.Link) {
	s := policy.State{Objects: policy.Objects{Namespaces: []policy.Namespace{{Name: "x"}}}}
	links := map[netip.Addr]ruleset.Link{}
	web := map[string]string{"app": "web"}
	for i := range localPods {
		name, subnet := fmt.Sprint("web", i), netip.MustParsePrefix("10.88.0.0/24")
		s.Pods = append(s.Pods, policy.Pod{
			Namespace: "x", Name: name, Labels: web, Addresses: []netip.Addr{localPod(i)},
		})
		e := policy.Endpoint{
			ID: name + ":eth0", Pod: policy.PodRef{Namespace: "x", Name: name}, Enforcement: conf.Strict,
			Addresses: []policy.Address{{Addr: localPod(i), Subnet: subnet}},
		}
		s.Endpoints = append(s.Endpoints, e)
		links[localPod(i)] = policy.LinkOf(e)
	}
	for i := range remotePods {
		s.Pods = append(s.Pods, policy.Pod{
			Namespace: "x", Name: fmt.Sprint("peer", i), Addresses: []netip.Addr{remotePod(i)},
			Labels: map[string]string{"number": fmt.Sprint(i % min(n, selectors))},
		})
	}
	for i := range n {
		port := intstr.FromInt32(int32(80 + i/selectors))
		s.Policies = append(s.Policies, policytest.Letting(fmt.Sprint("p", i), web,
			policytest.Selectors(i%selectors, 1), networkingv1.NetworkPolicyPort{Port: &port}))
	}
	return policy.Compile(s), links
}
