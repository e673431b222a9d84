package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
)

// TestIndexOfRulesets: for the rulesets of random clusters, an Index gives the same verdicts as a Simulator.
func TestIndexOfRulesets(t *testing.T) {
	clusters := 400
	if testing.Short() {
		clusters = 40
	}
	for seed := range clusters {
		r := rand.New(rand.NewPCG(uint64(seed), 14))
		state := policytest.State(r)
		rules := policy.Compile(state)
		simulator, err := ruleset.NewSimulator(rules)
		if err != nil {
			t.Fatal(err)
		}
		index := ruleset.NewIndex(rules)
		for _, p := range append(policytest.Packets(state), policytest.Probes(r, state, 2)...) {
			if got, want := index.Allows(p), simulator.Allows(p); got != want {
				t.Fatalf("seed %d: %+v: allowed %v, want %v by\n%s", seed, p, got, want, written(rules))
			}
		}
	}
}

var manyRules = map[string]func(i int) ([]networkingv1.NetworkPolicyPeer, networkingv1.NetworkPolicyPort){
	"selectors, one port": func(i int) ([]networkingv1.NetworkPolicyPeer, networkingv1.NetworkPolicyPort) {
		return policytest.Selectors(i, 1), portNumber(80)
	},
	"selectors, ports": func(i int) ([]networkingv1.NetworkPolicyPeer, networkingv1.NetworkPolicyPort) {
		return policytest.Selectors(i%100, 1), portNumber(1 + i)
	},
	"selectors, named port": func(i int) ([]networkingv1.NetworkPolicyPeer, networkingv1.NetworkPolicyPort) {
		port := intstr.FromString("http")
		return policytest.Selectors(i%100, 1), networkingv1.NetworkPolicyPort{Port: &port}
	},
	"everyone, ports": func(i int) ([]networkingv1.NetworkPolicyPeer, networkingv1.NetworkPolicyPort) {
		return nil, portNumber(1 + 2*i)
	},
	"blocks, one port": func(i int) ([]networkingv1.NetworkPolicyPeer, networkingv1.NetworkPolicyPort) {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i>>8), byte(i), 0}), 24-i%3)
		return []networkingv1.NetworkPolicyPeer{
			{IPBlock: &networkingv1.IPBlock{CIDR: block.Masked().String()}},
			{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.88.0.0/16"}}},
		}, portNumber(1 + i)
	},
}

func portNumber(i int) networkingv1.NetworkPolicyPort {
	port := intstr.FromInt32(int32(i))
	return networkingv1.NetworkPolicyPort{Port: &port}
}

// BenchmarkIndex measures the CPU time that an Index and a Simulator need for a packet to a pod with many policies. A
// warm index has seen the packets before, and a cold index hasn't.
//
// Run it as: go test ./policy -run - -bench Index
func BenchmarkIndex(b *testing.B) {
	for name, shape := range manyRules {
		for _, n := range []int{10, 1_000, 10_000} {
			b.Run(fmt.Sprintf("%s/rules=%d", name, n), func(b *testing.B) {
				rules, packets := manyPolicies(n, shape), toWeb(n)
				b.Run("warm", func(b *testing.B) {
					index := ruleset.NewIndex(rules)
					for _, p := range packets {
						index.Allows(p)
					}
					b.ReportAllocs()
					began := cpu(b)
					for i := 0; b.Loop(); i++ {
						index.Allows(packets[i%len(packets)])
					}
					b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
				})
				b.Run("simulator", func(b *testing.B) {
					simulator, err := ruleset.NewSimulator(rules)
					if err != nil {
						b.Fatal(err)
					}
					began := cpu(b)
					for i := 0; b.Loop(); i++ {
						simulator.Allows(packets[i%len(packets)])
					}
					b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
				})
				b.Run("cold", func(b *testing.B) {
					var index *ruleset.Index
					began := cpu(b)
					for i := 0; b.Loop(); i++ {
						if i%len(packets) == 0 {
							index = ruleset.NewIndex(rules)
						}
						index.Allows(packets[i%len(packets)])
					}
					b.ReportMetric(float64(cpu(b)-began)/float64(b.N), "cpu-ns/op")
				})
			})
		}
	}
}

func cpu(b *testing.B) int64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

func manyPolicies(
	n int, shape func(i int) ([]networkingv1.NetworkPolicyPeer, networkingv1.NetworkPolicyPort),
) ruleset.Ruleset {
	var s policy.State
	s.Namespaces = []policy.Namespace{{Name: "x"}}
	web := map[string]string{"app": "web"}
	s.Pods = []policy.Pod{{
		Namespace: "x", Name: "web", Labels: web, Addresses: []netip.Addr{netip.MustParseAddr("10.88.0.2")},
		Ports: []policy.NamedPort{{Name: "http", Proto: ruleset.TCP, Number: 8080}},
	}}
	s.Endpoints = []policy.Endpoint{{
		ID: "web:eth0", Pod: policy.PodRef{Namespace: "x", Name: "web"}, Enforcement: conf.Strict,
		Addresses: []policy.Address{{
			Addr: netip.MustParseAddr("10.88.0.2"), Subnet: netip.MustParsePrefix("10.88.0.0/24"),
		}},
	}}
	for i := range 8192 {
		s.Pods = append(s.Pods, policy.Pod{
			Namespace: "x", Name: fmt.Sprint("peer", i), Addresses: []netip.Addr{peer(i)},
			Labels: map[string]string{"number": fmt.Sprint(i % n)},
		})
	}
	for i := range n {
		peers, port := shape(i)
		s.Policies = append(s.Policies, policytest.Letting(fmt.Sprint("p", i), web, peers, port))
	}
	return policy.Compile(s)
}

func peer(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 89, byte(i >> 8), byte(i)}) }

func toWeb(n int) []ruleset.Packet {
	var all []ruleset.Packet
	for i := range 8192 {
		all = append(all, ruleset.Packet{
			In: "eth0", Out: conf.Bridge, Src: peer(i), Dst: netip.MustParseAddr("10.88.0.2"), Proto: ruleset.TCP,
			Port: uint16([]int{80, 1 + i%n, 65535}[i%3]),
		})
	}
	return all
}
