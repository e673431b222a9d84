package verdict

import (
	"fmt"
	"maps"
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

// Evaluator evaluates packets against the policies of one state. A Cache makes Evaluators for several states.
type Evaluator struct {
	policies   []isolating
	ends       map[netip.Addr]end
	namespaces map[string]policy.Namespace
}

type end struct {
	addr        netip.Addr
	name        string // namespace/name
	here        bool   // true if the pod is on this node
	enforcement conf.Enforcement
	pods        []pod // pods that may be at this end
}

type pod struct {
	policy.Pod
	labels, namespace labels.Set
	unknown           []string // keys of the namespace's labels that are unknown
	inKnownNamespace  bool
}

// certainly reports whether the selector certainly matches, and whether it possibly does. A requirement on an unknown
// label possibly matches.
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

// unknownOfNamespace reports whether the label of the pod's namespace is unknown. If the namespace itself is unknown,
// only its label kubernetes.io/metadata.name is known.
func (p pod) unknownOfNamespace(key string) bool {
	if !p.inKnownNamespace {
		return key != corev1.LabelMetadataName
	}
	return slices.Contains(p.unknown, key)
}

type isolating struct {
	*networkingv1.NetworkPolicy
	name    string
	audited bool // true for an audited policy, which isolates nothing and allows nothing
	selects func(pod) (certainly, possibly bool)
	rules   map[ruleset.Direction][]rule // rules for each direction that the policy isolates
}

// selectsOneOf reports whether the policy certainly selects one of the pods, and whether it possibly does.
func (p *isolating) selectsOneOf(pods []pod) (certainly, possibly bool) {
	for _, o := range pods {
		is, may := p.selects(o)
		certainly, possibly = certainly || is, possibly || may
	}
	return certainly, possibly
}

type rule struct {
	direction ruleset.Direction
	field     string
	peers     []named[peerMatch]
	ports     []named[portMatch]
	// byName is true if one of the ports is a name. The number of such a port depends on the destination.
	byName bool
}

type named[M any] struct {
	field string
	match M
}

type (
	peerMatch func(end) bool
	portMatch func(proto ruleset.Protocol, port uint16, dst end) bool
)

// New returns an Evaluator for the state. It returns no error: parts of policies that can't be parsed allow nothing.
func New(s policy.State) *Evaluator {
	return new(Cache).New(s)
}

// Cache makes Evaluators for several states with the same policies, and remembers the parsed policies. The policies
// must not change while the Cache is used. The zero value is ready for use. Only one goroutine may use a Cache.
type Cache struct {
	parsed map[string][]isolating // by NAMESPACE/NAME
}

const maxCached = 1 << 11

// New returns an Evaluator for the state. It parses only policies that the Cache doesn't remember.
func (c *Cache) New(s policy.State) *Evaluator {
	if len(c.parsed) > maxCached || c.parsed == nil {
		c.parsed = map[string][]isolating{}
	}
	namespaces := byName(s.Namespaces)
	e := &Evaluator{ends: ends(s, namespaces), namespaces: namespaces}
	now := map[string][]isolating{}
	for _, np := range s.Policies {
		name := np.Namespace + "/" + np.Name
		known := c.parsed[name]
		i := slices.IndexFunc(known, func(p isolating) bool { return p.NetworkPolicy == np })
		var p isolating
		if i >= 0 {
			p = known[i]
		} else {
			p = isolating{np, name, np.Annotations[policy.AuditAnnotation] == "true", subjects(np), rules(np)}
		}
		now[name] = append(now[name], p)
		e.policies = append(e.policies, p)
	}
	maps.Copy(c.parsed, now)
	return e
}

func (e *Evaluator) end(a netip.Addr) end {
	if known, ok := e.ends[a]; ok {
		return known
	}
	return end{addr: a}
}

// ends returns an end for each address of the state. If a pod has an endpoint on this node, the endpoint's addresses
// count. Otherwise the addresses in the pod's status count, except those that the pod's Node can't have assigned. The
// status of a finished pod doesn't count. A pod that uses its node's network has no end.
func ends(s policy.State, namespaces map[string]policy.Namespace) map[netip.Addr]end {
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
		if !p.HostNetwork {
			pods = append(pods, newPod(namespaces, p))
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
			if e := by[a]; !e.here && assignedBy(s, p.NodeName, a) {
				by[a] = end{addr: a, name: name, pods: append(e.pods, p)}
			}
		}
	}
	return by
}

// assignedBy reports whether the Node of this name can have assigned the address: it must be in that Node's podCIDRs,
// and in no podCIDR of s.Node. If the state has neither Nodes nor a name in s.Node, assignedBy returns true.
func assignedBy(s policy.State, name string, a netip.Addr) bool {
	if s.Node == "" && len(s.Nodes) == 0 {
		return true
	}
	assigned := false
	for _, n := range s.Nodes {
		contains := slices.ContainsFunc(n.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
		if contains && n.Name == s.Node {
			return false
		}
		assigned = assigned || (contains && n.Name == name)
	}
	return assigned
}

func subjects(np *networkingv1.NetworkPolicy) func(pod) (certainly, possibly bool) {
	sel, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
	return func(p pod) (bool, bool) {
		if p.Namespace != np.Namespace || err != nil {
			return p.Namespace == np.Namespace, p.Namespace == np.Namespace
		}
		return certainly(sel, p.labels, p.unknownLabel)
	}
}

// rules returns the rules for each isolated direction. The API says of a policy without policyTypes: "policies that
// contain an egress section are assumed to affect egress, and all policies (whether or not they contain an ingress
// section) are assumed to affect ingress". An unknown type isolates both directions. If the podSelector is wrong, there
// are no rules.
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
			isolated[ruleset.Ingress] = append(isolated[ruleset.Ingress], newRule(np, ruleset.Ingress, i, r.From, r.Ports))
		}
	}
	if egress {
		isolated[ruleset.Egress] = nil
		for i, r := range spec.Egress {
			isolated[ruleset.Egress] = append(isolated[ruleset.Egress], newRule(np, ruleset.Egress, i, r.To, r.Ports))
		}
	}
	return isolated
}

func newRule(
	np *networkingv1.NetworkPolicy, d ruleset.Direction, index int, peers []networkingv1.NetworkPolicyPeer,
	ports []networkingv1.NetworkPolicyPort,
) rule {
	r := rule{direction: d, field: fmt.Sprintf("%s[%d]", d, index)}
	verb := map[ruleset.Direction]string{ruleset.Ingress: "from", ruleset.Egress: "to"}[d]
	if len(peers) == 0 {
		r.peers = []named[peerMatch]{{Everyone, func(end) bool { return true }}}
	}
	for i, p := range peers {
		r.peers = append(r.peers, named[peerMatch]{fmt.Sprintf("%s.%s[%d]", r.field, verb, i), matchPeer(np.Namespace, p)})
	}
	if len(ports) == 0 {
		r.ports = []named[portMatch]{{EveryPort, func(ruleset.Protocol, uint16, end) bool { return true }}}
	}
	for i, p := range ports {
		r.ports = append(r.ports, named[portMatch]{fmt.Sprintf("%s.ports[%d]", r.field, i), matchPort(p)})
		r.byName = r.byName || p.Port != nil && p.Port.Type == intstr.String
	}
	return r
}

func nobody(end) bool { return false }

// all reports whether all pods match. It returns false if there are no pods.
func all(pods []pod, matches func(pod) bool) bool {
	return len(pods) > 0 && !slices.ContainsFunc(pods, func(p pod) bool { return !matches(p) })
}

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

// isMapped reports whether the network is an IPv4 network written as an IPv6 network. No packet has such an address.
func isMapped(p netip.Prefix) bool { return p.Masked().Addr().Is4In6() }

// ExceptOf returns the network that an except takes out of the CIDR. It returns false if the text is no network within
// the CIDR. In an IPv4 CIDR, an IPv4 network written as an IPv6 network counts as that IPv4 network, because API
// servers accept such an except.
func ExceptOf(cidr netip.Prefix, text string) (netip.Prefix, bool) {
	except, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	if first := except.Masked().Addr(); cidr.Addr().Is4() && first.Is4In6() {
		except = netip.PrefixFrom(first.Unmap(), except.Bits()-96)
	}
	return except.Masked(), except.Bits() >= cidr.Bits() && cidr.Contains(except.Addr())
}

// matchBlock returns the function that matches an ipBlock. The function matches nothing if a network can't be parsed,
// if the CIDR is an IPv4 network written as an IPv6 network, or if an except is outside of the CIDR.
func matchBlock(b networkingv1.IPBlock) peerMatch {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil || isMapped(cidr) {
		return nobody
	}
	var excepts []netip.Prefix
	for _, text := range b.Except {
		except, ok := ExceptOf(cidr, text)
		if !ok {
			return nobody
		}
		excepts = append(excepts, except)
	}
	return func(e end) bool {
		return cidr.Contains(e.addr) && !slices.ContainsFunc(excepts, func(x netip.Prefix) bool { return x.Contains(e.addr) })
	}
}

// matchPort returns the function that matches a policy's port:
//
//   - Without a protocol, the protocol is TCP.
//   - Without a port, all ports of the protocol match.
//   - A name matches the port that has this name in the destination's pod.
//   - A number with an endPort matches all ports from the number to the endPort.
//   - An endPort without a number matches nothing. An invalid port, range or protocol matches nothing either.
func matchPort(p networkingv1.NetworkPolicyPort) portMatch {
	protocol, known := protocolOf(p)
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
	return func(proto ruleset.Protocol, port uint16, dst end) bool {
		return known && strings.EqualFold(string(proto), string(protocol)) && isPort(port, dst)
	}
}

// protocolOf returns the protocol of a policy's port. known is false for a protocol without ports, or an unknown one.
func protocolOf(p networkingv1.NetworkPolicyPort) (protocol corev1.Protocol, known bool) {
	if p.Protocol == nil {
		return corev1.ProtocolTCP, true
	}
	all := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	return *p.Protocol, slices.Contains(all, *p.Protocol)
}
