// Package suggest writes NetworkPolicies that allow the TCP, UDP and SCTP connections that were seen.
//
// All pods in one namespace that have the same labels are one workload. Labels that controllers give to single pods
// don't count. No policy can tell the pods of a workload apart. So if one pod of a workload had a connection, the
// policies allow this connection for all pods of the workload.
//
// Invariants:
//   - The package is pure.
//   - The policies isolate all pods of the namespace. They allow only the connections that were seen, for all pods of
//     their workloads.
//   - Connections that a policy's ports can't name, such as ICMP, are returned separately.
package suggest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/propose"
	"github.com/weir-net/weir/policy/ruleset"
)

// Flow stands for all recorded connections from one end to one port of another end.
type Flow struct {
	From, To    End
	Protocol    ruleset.Protocol
	Port        uint16 // the destination's port
	Count       uint64
	First, Last time.Time
}

// End is an end of a Flow: an address, or a pod with the labels that it had when the connections were seen.
type End struct {
	Namespace, Name string
	Labels          map[string]string
	Address         netip.Addr
	Node            string
}

func (e End) isPod() bool { return e.Name != "" }

func (e End) String() string {
	switch {
	case e.isPod():
		return e.Namespace + "/" + e.Name
	case e.Node != "":
		return fmt.Sprintf("%s (node %s)", e.Address, e.Node)
	}
	return e.Address.String()
}

type Suggestion struct {
	Policy *networkingv1.NetworkPolicy
	// Ingress and Egress have, for each ingress and egress rule of the policy, the flows that the rule allows.
	Ingress, Egress [][]Flow
}

// Result has the suggested policies, and the flows that policies can't name.
type Result struct {
	Suggestions []Suggestion
	// Left has the namespace's flows that a policy's ports can't name: flows of protocols other than TCP, UDP and SCTP,
	// such as ICMP, and flows without a port.
	Left []Flow
}

// Policies returns policies for the namespace: one that isolates all of its pods, and one for each workload with
// flows. Flows may also name pods that have been deleted. The workloads of deleted pods also get policies, and the
// selectors for other workloads don't match deleted pods.
func Policies(namespace string, pods []policy.Pod, flows []Flow) Result {
	s := suggester{namespace: namespace, workloads: map[string][]*workload{}, policies: map[*workload]*rules{}}
	for i := range pods {
		if p := &pods[i]; !p.HostNetwork && !p.Finished {
			s.workload(p.Namespace, propose.Labels(p))
		}
	}
	for _, f := range flows {
		for _, e := range [...]End{f.From, f.To} {
			if e.isPod() {
				s.workload(e.Namespace, propose.Labels(&policy.Pod{Labels: e.Labels}))
			}
		}
	}
	var r Result
	for _, f := range flows {
		if f.From.isPod() && f.To.isPod() && f.From.Namespace == f.To.Namespace && f.From.Name == f.To.Name {
			continue // a pod always reaches itself
		}
		concerns := f.From.isPod() && f.From.Namespace == namespace || f.To.isPod() && f.To.Namespace == namespace
		switch {
		case !concerns:
		case f.Port == 0 || !slices.Contains([]ruleset.Protocol{ruleset.TCP, ruleset.UDP, ruleset.SCTP}, f.Protocol):
			r.Left = append(r.Left, f)
		default:
			s.add(f)
		}
	}
	r.Suggestions = append([]Suggestion{{Policy: &networkingv1.NetworkPolicy{
		TypeMeta: kind, ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "default-deny"},
		Spec: networkingv1.NetworkPolicySpec{PolicyTypes: both},
	}}}, s.suggestions()...)
	return r
}

var (
	kind = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
	both = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
)

type suggester struct {
	namespace string
	workloads map[string][]*workload // by namespace
	policies  map[*workload]*rules
}

type rules struct{ ingress, egress map[string]*peer }

type peer struct {
	workload *workload // nil if the end is an address
	address  netip.Addr
	flows    map[port][]Flow
}

type port struct {
	proto  ruleset.Protocol
	number uint16
}

func (p port) compare(o port) int {
	return cmp.Or(cmp.Compare(p.proto, o.proto), cmp.Compare(p.number, o.number))
}

func (s *suggester) add(f Flow) {
	from, to := s.of(f.From), s.of(f.To)
	put := func(of *workload, ingress bool, other *workload, e End) {
		r := s.policies[of]
		if r == nil {
			r = &rules{map[string]*peer{}, map[string]*peer{}}
			s.policies[of] = r
		}
		peers := r.egress
		if ingress {
			peers = r.ingress
		}
		key := e.Address.String()
		if other != nil {
			key = other.key()
		}
		if peers[key] == nil {
			peers[key] = &peer{workload: other, address: e.Address, flows: map[port][]Flow{}}
		}
		at := port{f.Protocol, f.Port}
		peers[key].flows[at] = append(peers[key].flows[at], f)
	}
	if to != nil && to.namespace == s.namespace {
		put(to, true, from, f.From)
	}
	if from != nil && from.namespace == s.namespace {
		put(from, false, to, f.To)
	}
}

func (s *suggester) of(e End) *workload {
	if !e.isPod() {
		return nil
	}
	return s.workload(e.Namespace, propose.Labels(&policy.Pod{Labels: e.Labels}))
}

func (s *suggester) suggestions() (all []Suggestion) {
	of := slices.SortedFunc(maps.Keys(s.policies), func(a, b *workload) int { return cmp.Compare(a.key(), b.key()) })
	names := map[string]bool{"default-deny": true}
	for _, w := range of {
		np := &networkingv1.NetworkPolicy{
			TypeMeta: kind, ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: free(w.name(), names)},
			Spec: networkingv1.NetworkPolicySpec{PodSelector: s.selector(w)},
		}
		next := Suggestion{Policy: np}
		for _, r := range s.grouped(s.policies[w].ingress) {
			np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers, Ports: r.ports})
			next.Ingress = append(next.Ingress, r.flows)
		}
		for _, r := range s.grouped(s.policies[w].egress) {
			np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: r.peers, Ports: r.ports})
			next.Egress = append(next.Egress, r.flows)
		}
		if len(np.Spec.Ingress) > 0 {
			np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		}
		if len(np.Spec.Egress) > 0 {
			np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
		all = append(all, next)
	}
	slices.SortFunc(all, func(a, b Suggestion) int { return cmp.Compare(a.Policy.Name, b.Policy.Name) })
	return all
}

func free(name string, taken map[string]bool) string {
	unique := name
	for n := 2; taken[unique]; n++ {
		unique = fmt.Sprintf("%s-%d", name, n)
	}
	taken[unique] = true
	return unique
}

type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
	flows []Flow
}

func (s *suggester) grouped(peers map[string]*peer) (rules []rule) {
	at := map[string]int{}
	for _, key := range slices.Sorted(maps.Keys(peers)) {
		p := peers[key]
		ports := slices.SortedFunc(maps.Keys(p.flows), port.compare)
		text := fmt.Sprint(ports)
		i, known := at[text]
		if !known {
			i, at[text] = len(rules), len(rules)
			var r rule
			for _, one := range ports {
				proto, number := corev1.Protocol(strings.ToUpper(string(one.proto))), intstr.FromInt32(int32(one.number))
				r.ports = append(r.ports, networkingv1.NetworkPolicyPort{Protocol: &proto, Port: &number})
			}
			rules = append(rules, r)
		}
		rules[i].peers = append(rules[i].peers, s.peer(p))
		for _, one := range ports {
			rules[i].flows = append(rules[i].flows, p.flows[one]...)
		}
	}
	return rules
}

func (s *suggester) peer(p *peer) networkingv1.NetworkPolicyPeer {
	if p.workload == nil {
		cidr := netip.PrefixFrom(p.address, p.address.BitLen()).String()
		return networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr}}
	}
	selector := s.selector(p.workload)
	named := networkingv1.NetworkPolicyPeer{PodSelector: &selector}
	if p.workload.namespace != s.namespace {
		named.NamespaceSelector = &metav1.LabelSelector{
			MatchLabels: map[string]string{corev1.LabelMetadataName: p.workload.namespace},
		}
	}
	return named
}
