package verdict_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/policytest"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// TestNearest: each rule of an isolating policy either allows the packet, or is in the result of Nearest.
func TestNearest(t *testing.T) {
	near, allowed := 0, 0
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 9))
		state := policytest.State(r)
		e := verdict.New(state)
		for _, probe := range policytest.Probes(r, state, 2) {
			p := verdict.Packet{Src: probe.Src, Dst: probe.Dst, Proto: probe.Proto, Port: probe.Port}
			v := e.Evaluate(p)
			for d, side := range map[ruleset.Direction]verdict.Side{ruleset.Egress: v.Egress, ruleset.Ingress: v.Ingress} {
				if side.Unknown || side.Off || len(side.Either) > 0 {
					continue
				}
				missed := map[string]bool{}
				for _, n := range e.Nearest(d, p, false) {
					missed[n.Policy+" "+n.Field] = true
					near++
					for _, m := range n.Misses {
						if m.Why == "" || m.Change == "" || m.Field == "" || m.Kind == "" {
							t.Fatalf("seed %d: %+v: an empty field in %+v", seed, p, m)
						}
					}
				}
				for _, np := range side.Policies {
					for _, rule := range np.Rules {
						if rule.Allows() == missed[np.Name+" spec."+rule.Field] {
							t.Fatalf("seed %d: %+v: %s %s: allows: %v, missed: %v", seed, p, np.Name, rule.Field, rule.Allows(),
								missed[np.Name+" spec."+rule.Field])
						}
						if rule.Allows() {
							allowed++
						}
					}
				}
			}
		}
	}
	if near < 1000 || allowed < 1000 {
		t.Errorf("only %d near and %d allowing rules", near, allowed)
	}
}

// TestAdvice: after the changes that a rule's misses name, the rule allows the packet. If these are only changes of the
// policy, the rule still allows the packets that it allowed before.
func TestAdvice(t *testing.T) {
	followed := map[string]int{}
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 10))
		state := policytest.State(r)
		e := verdict.New(state)
		probes := policytest.Probes(r, state, 2)
		for i, probe := range probes {
			p := verdict.Packet{Src: probe.Src, Dst: probe.Dst, Proto: probe.Proto, Port: probe.Port}
			for _, d := range []ruleset.Direction{ruleset.Egress, ruleset.Ingress} {
				side := sideOf(e.Evaluate(p), d)
				uncertain := len(e.At(p.Src).Pods()) > 1 || len(e.At(p.Dst).Pods()) > 1
				if side.Unknown || side.Off || uncertain || p.Src == p.Dst {
					continue
				}
				for _, near := range e.Nearest(d, p, false) {
					changed, kinds, ok := follow(t, state, near)
					if !ok {
						continue
					}
					for k := range kinds {
						followed[k]++
					}
					after := verdict.New(changed)
					if !ruleAllows(after, d, near, p) {
						t.Fatalf("seed %d: %+v: %s %s still doesn't allow it after %+v\n%s", seed, p, near.Policy, near.Field,
							near.Misses, policytest.YAML(changed))
					}
					for _, other := range probes[max(0, i-20):i] {
						o := verdict.Packet{Src: other.Src, Dst: other.Dst, Proto: other.Proto, Port: other.Port}
						if kinds["policy"] && len(kinds) == 1 && ruleAllows(e, d, near, o) && !ruleAllows(after, d, near, o) {
							t.Fatalf("seed %d: %s %s doesn't allow %+v any more after %+v", seed, near.Policy, near.Field, o, near.Misses)
						}
					}
				}
			}
		}
	}
	for _, k := range []string{"policy", "pod", "namespace"} {
		if followed[k] < 200 {
			t.Errorf("only %d changes of a %s", followed[k], k)
		}
	}
	t.Log(followed)
}

func sideOf(v verdict.Verdict, d ruleset.Direction) verdict.Side {
	if d == ruleset.Egress {
		return v.Egress
	}
	return v.Ingress
}

func ruleAllows(e *verdict.Evaluator, d ruleset.Direction, near verdict.Near, p verdict.Packet) bool {
	for _, np := range sideOf(e.Evaluate(p), d).Policies {
		for _, rule := range np.Rules {
			if np.Name == near.Policy && "spec."+rule.Field == near.Field && rule.Allows() {
				return true
			}
		}
	}
	return false
}

var advices = map[*regexp.Regexp]func(state *policy.State, r *ruleOf, words []string){
	regexp.MustCompile(`^give pod (\S+)/(\S+) the label ([^=]+)(?:=(.*))?$`): func(
		s *policy.State, _ *ruleOf, w []string,
	) {
		eachPod(s, w[1], w[2], func(labels map[string]string) { labels[w[3]] = w[4] })
	},
	regexp.MustCompile(`^give namespace (\S+) the label ([^=]+)(?:=(.*))?$`): func(
		s *policy.State, _ *ruleOf, w []string,
	) {
		eachNamespace(s, w[1], func(labels map[string]string) { labels[w[2]] = w[3] })
	},
	regexp.MustCompile(`^add a peer like \S+\[(\d+)\] to the rule, with a namespaceSelector with (\S+): (\S+)$`): func(
		_ *policy.State, r *ruleOf, w []string,
	) {
		i, _ := strconv.Atoi(w[1])
		peer := (*r.peers)[i]
		peer.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{w[2]: w[3]}}
		*r.peers = append(*r.peers, peer)
	},
	regexp.MustCompile(`^add a peer for pod (\S+)/(\S+) to the rule, with a namespaceSelector with (\S+): (\S+) and a ` +
		`podSelector with labels of the pod$`): func(s *policy.State, r *ruleOf, w []string) {
		peer := networkingv1.NetworkPolicyPeer{
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{w[3]: w[4]}},
		}
		i := slices.IndexFunc(s.Pods, func(p policy.Pod) bool { return p.Namespace == w[1] && p.Name == w[2] })
		peer.PodSelector = &metav1.LabelSelector{MatchLabels: maps.Clone(s.Pods[i].Labels)}
		for _, key := range s.Pods[i].Unknown {
			delete(peer.PodSelector.MatchLabels, key)
		}
		*r.peers = append(*r.peers, peer)
	},
	regexp.MustCompile(`^add an ipBlock with (\S+) to the rule$`): func(_ *policy.State, r *ruleOf, w []string) {
		a := netip.MustParseAddr(w[1])
		*r.peers = append(*r.peers, networkingv1.NetworkPolicyPeer{
			IPBlock: &networkingv1.IPBlock{CIDR: netip.PrefixFrom(a, a.BitLen()).String()},
		})
	},
	regexp.MustCompile(`^(?:name the .*, or )?add port (\d+)(?: with protocol: (\S+))? to the rule$`): func(
		_ *policy.State, r *ruleOf, w []string,
	) {
		number := intstr.Parse(w[1])
		port := networkingv1.NetworkPolicyPort{Port: &number}
		if w[2] != "" {
			port.Protocol = new(corev1.Protocol)
			*port.Protocol = corev1.Protocol(w[2])
		}
		*r.ports = append(*r.ports, port)
	},
}

type ruleOf struct {
	peers *[]networkingv1.NetworkPolicyPeer
	ports *[]networkingv1.NetworkPolicyPort
}

// follow makes the changes that the misses name, and returns which kinds of objects it has changed. ok is false if one
// of the changes isn't exact, such as "correct the field".
func follow(t *testing.T, s policy.State, near verdict.Near) (_ policy.State, kinds map[string]bool, ok bool) {
	s.Policies, s.Pods, s.Namespaces = slices.Clone(s.Policies), slices.Clone(s.Pods), slices.Clone(s.Namespaces)
	for _, n := range s.Namespaces {
		eachNamespace(&s, n.Name, func(map[string]string) {})
	}
	named := func(np *networkingv1.NetworkPolicy) bool { return np.Namespace+"/"+np.Name == near.Policy }
	i := slices.IndexFunc(s.Policies, named)
	if slices.ContainsFunc(s.Policies[i+1:], named) { // the state has two policies of this name
		return s, nil, false
	}
	np := s.Policies[i].DeepCopy()
	s.Policies[i] = np
	var r ruleOf
	var n int
	if _, err := fmt.Sscanf(near.Field, "spec.ingress[%d]", &n); err == nil {
		r = ruleOf{&np.Spec.Ingress[n].From, &np.Spec.Ingress[n].Ports}
	} else if _, err := fmt.Sscanf(near.Field, "spec.egress[%d]", &n); err == nil {
		r = ruleOf{&np.Spec.Egress[n].To, &np.Spec.Egress[n].Ports}
	} else {
		t.Fatal(near.Field)
	}
	kinds = map[string]bool{}
	for _, m := range near.Misses {
		known := false
		for form, change := range advices {
			words := form.FindStringSubmatch(m.Change)
			if words == nil {
				continue
			}
			known = true
			change(&s, &r, words)
			switch {
			case strings.Contains(m.Change, " to the rule"):
				kinds["policy"] = true
			case strings.Contains(m.Change, "pod "):
				kinds["pod"] = true
			default:
				kinds["namespace"] = true
			}
		}
		if !known {
			return s, nil, false
		}
	}
	return s, kinds, true
}

func eachPod(s *policy.State, namespace, name string, change func(map[string]string)) {
	for i := range s.Pods {
		if p := &s.Pods[i]; p.Namespace == namespace && p.Name == name {
			p.Labels = maps.Clone(p.Labels)
			if p.Labels == nil {
				p.Labels = map[string]string{}
			}
			change(p.Labels)
		}
	}
}

func eachNamespace(s *policy.State, name string, change func(map[string]string)) {
	for i := range s.Namespaces {
		if n := &s.Namespaces[i]; n.Name == name {
			n.Labels = maps.Clone(n.Labels)
			if n.Labels == nil {
				n.Labels = map[string]string{}
			}
			change(n.Labels)
			n.Labels[corev1.LabelMetadataName] = name // as the API server does
		}
	}
}
