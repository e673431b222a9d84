package propose_test

import (
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/propose"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// TestRulesAllow: audited policies would drop some traffic if they were enforced. With the proposed rules, these
// policies would no longer drop this traffic, except protocols without ports.
func TestRulesAllow(t *testing.T) {
	allowed, left := 0, 0
	for seed := range uint64(1000) {
		r := rand.New(rand.NewPCG(seed, 31))
		s := policytest.State(r)
		for i := range s.Namespaces { // the API server sets this label
			s.Namespaces[i].Labels[corev1.LabelMetadataName] = s.Namespaces[i].Name
		}
		evaluator := verdict.New(s)
		traffic := map[string][]propose.Traffic{} // by the policy's name
		var packets []verdict.Packet
		for _, p := range policytest.Probes(r, s, 1) {
			packet := verdict.Packet{Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port}
			v := evaluator.Evaluate(packet)
			for _, d := range v.WouldDrop() {
				side := v.Ingress
				if d == ruleset.Egress {
					side = v.Egress
				}
				for _, np := range side.Audited {
					namespace, _, _ := strings.Cut(side.Pod, "/")
					traffic[np.Name] = append(traffic[np.Name], propose.Traffic{
						Direction: d, Namespace: namespace, Protocol: p.Proto, Port: p.Port,
						Peer: peerOf(s, v, d),
					})
				}
				packets = append(packets, packet)
			}
		}
		for i, np := range s.Policies {
			ingress, egress, rest := propose.Rules(traffic[np.Namespace+"/"+np.Name])
			more := np.DeepCopy()
			more.Spec.Ingress = append(more.Spec.Ingress, ingress...)
			more.Spec.Egress = append(more.Spec.Egress, egress...)
			s.Policies[i] = more
			left += len(rest)
		}
		evaluator = verdict.New(s)
		for _, p := range packets {
			if p.Port == 0 || p.Proto == "1" || p.Proto == "58" {
				continue
			}
			if v := evaluator.Evaluate(p); len(v.WouldDrop()) > 0 && selects(v) {
				t.Fatalf("seed %d: with the rules %+v\n%s\n%s", seed, p, v, policytest.YAML(s))
			}
			allowed++
		}
	}
	if allowed < 1000 || left < 50 {
		t.Errorf("%d packets are allowed, and %d have no ports: the test tests too little", allowed, left)
	}
}

func selects(v verdict.Verdict) bool {
	for _, side := range [...]verdict.Side{v.Egress, v.Ingress} {
		if len(side.Either) > 0 {
			return false
		}
		if !side.AllowedByAll() {
			for _, np := range side.Audited {
				if len(np.Rules) > 0 {
					return true
				}
			}
		}
	}
	return false
}

func peerOf(s policy.State, v verdict.Verdict, d ruleset.Direction) propose.Peer {
	pod, address := v.Egress.Pod, v.Packet.Src
	if d == ruleset.Egress {
		pod, address = v.Ingress.Pod, v.Packet.Dst
	}
	for i := range s.Pods {
		if o := &s.Pods[i]; o.Namespace+"/"+o.Name == pod {
			return propose.Peer{Namespace: o.Namespace, Labels: propose.Labels(o)}
		}
	}
	return propose.Peer{Address: address}
}

// TestLabels: the labels for a selector include neither labels that controllers set on single pods, nor unknown labels.
func TestLabels(t *testing.T) {
	p := &policy.Pod{
		Labels: map[string]string{"app": "db", "rollouts-pod-template-hash": "5d8c7f9b4", "x": "1"}, Unknown: []string{"x"},
	}
	if got := propose.Labels(p); !maps.Equal(got, map[string]string{"app": "db"}) {
		t.Errorf("got %v, want only app", got)
	}
}
