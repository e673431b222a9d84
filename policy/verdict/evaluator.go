package verdict

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// Evaluator knows one state. What of a policy can't be understood opens nothing.
type Evaluator struct {
	policies []isolating
	ends     map[netip.Addr]end
}

// end of a connection: an address, and whose it is. Nobody's: it is outside, or a node, or a pod with its node's
// address.
type end struct {
	addr        netip.Addr
	name        string // namespace/name
	here        bool
	enforcement conf.Enforcement
	pods        []pod
}

type pod struct {
	policy.Pod
	labels, namespace labels.Set
	unknown           []string // labels of the namespace that aren't known
	inKnownNamespace  bool
}

// certainly says whether the selector matches whatever the labels that aren't known may be; possibly, whether it can. A
// requirement on a label that isn't known can go either way.
func certainly(s labels.Selector, known labels.Set, unknown func(key string) bool) (certainly, possibly bool) {
	requirements, selectable := s.Requirements()
	certainly, possibly = selectable, selectable
	for _, r := range requirements {
		matches := r.Matches(known)
		certainly = certainly && matches && !unknown(r.Key())
		possibly = possibly && (matches || unknown(r.Key()))
	}
	return certainly, possibly
}

func (p pod) unknownLabel(key string) bool { return slices.Contains(p.Unknown, key) }

// unknownOfNamespace: a namespace always has the label with its name, so that much is known of each.
func (p pod) unknownOfNamespace(key string) bool {
	if !p.inKnownNamespace {
		return key != corev1.LabelMetadataName
	}
	return slices.Contains(p.unknown, key)
}

// isolating is a policy with all its parts turned into functions.
type isolating struct {
	name    string
	selects func(pod) (certainly, possibly bool)
	rules   map[ruleset.Direction][]rule // for each direction that it isolates
}

type rule struct {
	field string
	peers []named[peerMatch]
	ports []named[portMatch]
}

type named[M any] struct {
	field string
	match M
}

type (
	peerMatch func(end) bool
	portMatch func(proto ruleset.Protocol, port uint16, dst end) bool
)

// New prepares the state for many packets.
func New(s policy.State) *Evaluator {
	e := &Evaluator{ends: ends(s)}
	for _, np := range s.Policies {
		e.policies = append(e.policies, isolating{np.Namespace + "/" + np.Name, subjects(np), rules(np)})
	}
	return e
}

func (e *Evaluator) end(a netip.Addr) end {
	if known, ok := e.ends[a]; ok {
		return known
	}
	return end{addr: a}
}

// ends are all addresses that belong to pods. What is attached to this node has the address for certain; of other pods
// it is believed if their Node can have given it to them, unless they have ended or use their node's.
func ends(s policy.State) map[netip.Addr]end {
	by := map[netip.Addr]end{}
	attached := map[string]bool{}
	var pods []pod
	all := slices.Clone(s.Pods)
	for _, ep := range s.Endpoints {
		same := func(p policy.Pod) bool { return p.Namespace == ep.Pod.Namespace && p.Name == ep.Pod.Name }
		if !slices.ContainsFunc(all, same) {
			made, _ := policy.MadeBy(s.Workloads, ep.Pod.Namespace, ep.Pod.Name)
			all = append(all, made...)
		}
	}
	for _, p := range all {
		i := slices.IndexFunc(s.Namespaces, func(n policy.Namespace) bool { return n.Name == p.Namespace })
		known := pod{
			Pod: p, labels: p.Labels, inKnownNamespace: i >= 0, namespace: labels.Set{corev1.LabelMetadataName: p.Namespace},
		}
		if i >= 0 {
			known.namespace, known.unknown = s.Namespaces[i].Labels, s.Namespaces[i].Unknown
		}
		if !p.HostNetwork {
			pods = append(pods, known)
		}
	}
	for _, ep := range s.Endpoints {
		e := end{name: ep.Pod.String(), here: true, enforcement: ep.Enforcement}
		for _, p := range pods {
			sameUID := p.UID == "" || ep.Pod.UID == "" || p.UID == ep.Pod.UID
			if p.Namespace == ep.Pod.Namespace && p.Name == ep.Pod.Name && sameUID {
				e.pods = append(e.pods, p)
				attached[e.name] = true
			}
		}
		for _, a := range ep.Addresses {
			e.addr = a.Addr
			by[a.Addr] = e
		}
	}
	for _, p := range pods {
		name := p.Namespace + "/" + p.Name
		if p.Finished || attached[name] {
			continue
		}
		for _, a := range p.Addresses {
			if e := by[a]; !e.here && givenBy(s, p.NodeName, a) {
				by[a] = end{addr: a, name: name, pods: append(e.pods, p)}
			}
		}
	}
	return by
}

// givenBy says whether the Node can have given the address to a pod that isn't attached here: each Node gives out
// those in its podCIDRs, and this one has given none to pods that aren't attached. Where no Node is known at all,
// each can have given any.
func givenBy(s policy.State, name string, a netip.Addr) bool {
	if s.Node == "" && len(s.Nodes) == 0 {
		return true
	}
	can := false
	for _, n := range s.Nodes {
		gives := slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
		if gives && n.Name == s.Node {
			return false
		}
		can = can || (gives && n.Name == name)
	}
	return can
}

// subjects are the pods that the policy selects: those of its namespace that match its podSelector. Where that can't be
// understood, all of the namespace.
func subjects(np *networkingv1.NetworkPolicy) func(pod) (certainly, possibly bool) {
	sel, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
	return func(p pod) (bool, bool) {
		if p.Namespace != np.Namespace || err != nil {
			return p.Namespace == np.Namespace, p.Namespace == np.Namespace
		}
		return certainly(sel, p.labels, p.unknownLabel)
	}
}

// rules for each direction in policyTypes; without any, "policies that contain an egress section are assumed to
// affect egress, and all policies (whether or not they contain an ingress section) are assumed to affect ingress".
// Both directions if there is a type that doesn't exist. Of a policy whose podSelector can't be understood no rule
// counts, as nobody knows whom they were meant for.
func rules(np *networkingv1.NetworkPolicy) map[ruleset.Direction][]rule {
	has := func(t networkingv1.PolicyType) bool { return slices.Contains(np.Spec.PolicyTypes, t) }
	ingress, egress := has(networkingv1.PolicyTypeIngress), has(networkingv1.PolicyTypeEgress)
	if len(np.Spec.PolicyTypes) == 0 {
		ingress, egress = true, len(np.Spec.Egress) > 0
	}
	for _, t := range np.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			ingress, egress = true, true
		}
	}
	spec := np.Spec
	if _, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector); err != nil {
		spec.Ingress, spec.Egress = nil, nil
	}
	isolated := map[ruleset.Direction][]rule{}
	if ingress {
		isolated[ruleset.Ingress] = nil
		for i, r := range spec.Ingress {
			rule := newRule(np, fmt.Sprintf("ingress[%d]", i), "from", r.From, r.Ports)
			isolated[ruleset.Ingress] = append(isolated[ruleset.Ingress], rule)
		}
	}
	if egress {
		isolated[ruleset.Egress] = nil
		for i, r := range spec.Egress {
			rule := newRule(np, fmt.Sprintf("egress[%d]", i), "to", r.To, r.Ports)
			isolated[ruleset.Egress] = append(isolated[ruleset.Egress], rule)
		}
	}
	return isolated
}

// newRule: of from, to and ports alike, "if this field is empty or missing, this rule matches all".
func newRule(
	np *networkingv1.NetworkPolicy, field, verb string, peers []networkingv1.NetworkPolicyPeer,
	ports []networkingv1.NetworkPolicyPort,
) rule {
	r := rule{field: field}
	if len(peers) == 0 {
		r.peers = []named[peerMatch]{{Everyone, func(end) bool { return true }}}
	}
	for i, p := range peers {
		r.peers = append(r.peers, named[peerMatch]{fmt.Sprintf("%s.%s[%d]", field, verb, i), matchPeer(np.Namespace, p)})
	}
	if len(ports) == 0 {
		r.ports = []named[portMatch]{{EveryPort, func(ruleset.Protocol, uint16, end) bool { return true }}}
	}
	for i, p := range ports {
		r.ports = append(r.ports, named[portMatch]{fmt.Sprintf("%s.ports[%d]", field, i), matchPort(p)})
	}
	return r
}

func nobody(end) bool { return false }

// all says whether there are pods at an address, and all of them are so. That several pods claim one happens by mistake
// (overlapping podCIDRs); one of them alone must not open it.
func all(pods []pod, so func(pod) bool) bool {
	return len(pods) > 0 && !slices.ContainsFunc(pods, func(p pod) bool { return !so(p) })
}

// matchPeer: an ipBlock stands alone; of the selectors, a missing namespaceSelector means the policy's own namespace,
// and a missing podSelector all pods. At least one must be there.
func matchPeer(namespace string, p networkingv1.NetworkPolicyPeer) peerMatch {
	switch {
	case p.IPBlock != nil && p.PodSelector == nil && p.NamespaceSelector == nil:
		return matchBlock(*p.IPBlock)
	case p.IPBlock != nil, p.PodSelector == nil && p.NamespaceSelector == nil:
		return nobody
	}
	pods, namespaces := labels.Everything(), labels.Everything()
	var err error
	if p.PodSelector != nil {
		if pods, err = metav1.LabelSelectorAsSelector(p.PodSelector); err != nil {
			return nobody
		}
	}
	if p.NamespaceSelector != nil {
		if namespaces, err = metav1.LabelSelectorAsSelector(p.NamespaceSelector); err != nil {
			return nobody
		}
	}
	return func(e end) bool {
		return all(e.pods, func(o pod) bool {
			if p.NamespaceSelector == nil && o.Namespace != namespace {
				return false
			}
			if in, _ := certainly(namespaces, o.namespace, o.unknownOfNamespace); !in {
				return false
			}
			is, _ := certainly(pods, o.labels, o.unknownLabel)
			return is
		})
	}
}

// matchBlock: addresses in the CIDR and in none of the excepts, which must lie within it.
func matchBlock(b networkingv1.IPBlock) peerMatch {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return nobody
	}
	var excepts []netip.Prefix
	for _, text := range b.Except {
		except, err := netip.ParsePrefix(text)
		if err != nil || except.Bits() < cidr.Bits() || !cidr.Contains(except.Addr()) {
			return nobody
		}
		excepts = append(excepts, except)
	}
	return func(e end) bool {
		return cidr.Contains(e.addr) && !slices.ContainsFunc(excepts, func(x netip.Prefix) bool { return x.Contains(e.addr) })
	}
}

// matchPort: the protocol is TCP unless given; a port that is missing means all of the protocol, a name what the
// destination pod calls so, endPort the last of a range that begins with a number.
func matchPort(p networkingv1.NetworkPolicyPort) portMatch {
	protocol := corev1.ProtocolTCP
	if p.Protocol != nil {
		protocol = *p.Protocol
	}
	var isPort func(port uint16, dst end) bool
	switch {
	case p.Port == nil && p.EndPort == nil:
		isPort = func(uint16, end) bool { return true }
	case p.Port == nil, p.Port.Type == intstr.String && p.EndPort != nil:
		isPort = func(uint16, end) bool { return false }
	case p.Port.Type == intstr.String:
		isPort = func(port uint16, dst end) bool {
			return all(dst.pods, func(o pod) bool {
				return slices.ContainsFunc(o.Ports, func(n policy.NamedPort) bool {
					return n.Name == p.Port.StrVal && strings.EqualFold(string(n.Proto), string(protocol)) && n.Number == port
				})
			})
		}
	default:
		from, to := p.Port.IntVal, p.Port.IntVal
		if p.EndPort != nil {
			to = *p.EndPort
		}
		valid := 1 <= from && from <= to && to <= 65535
		isPort = func(port uint16, _ end) bool { return valid && from <= int32(port) && int32(port) <= to }
	}
	// No protocol but these has ports that a policy could mean.
	known := slices.Contains([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}, protocol)
	return func(proto ruleset.Protocol, port uint16, dst end) bool {
		return known && strings.EqualFold(string(proto), string(protocol)) && isPort(port, dst)
	}
}
