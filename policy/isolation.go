package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// isolation is a NetworkPolicy, parsed: which pods it isolates in which directions, and what it lets through.
type isolation struct {
	name      string // namespace/name
	namespace string
	pods      labels.Selector
	rules     map[Direction][]rule // a direction that is absent isn't isolated
}

// rule lets through what comes from (goes to) any of the peers on any of the ports.
type rule struct {
	field string // where it stands in the policy
	peers []peer
	ports []ports
}

// peer is one set of addresses; none at all means everybody.
type peer struct {
	field    string
	everyone bool
	selector *selector
	prefixes []netip.Prefix
	words    string
}

// parsePolicies reads the policies in the order of their names. What can't be read is reported, and closes rather than
// opens: a podSelector that doesn't parse isolates every pod of its namespace, a policyType that doesn't exist both
// directions, and a peer or port lets nothing through.
func parsePolicies(list []*networkingv1.NetworkPolicy) (parsed []isolation, problems []Problem) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	for _, np := range list {
		name := np.Namespace + "/" + np.Name
		report := func(field, format string, args ...any) {
			problems = append(problems, Problem{"NetworkPolicy " + name, field, fmt.Sprintf(format, args...)})
		}
		iso := isolation{name: name, namespace: np.Namespace, rules: map[Direction][]rule{}}
		var err error
		if iso.pods, err = metav1.LabelSelectorAsSelector(&np.Spec.PodSelector); err != nil {
			report("spec.podSelector", "%v; every pod in namespace %s is isolated", err, np.Namespace)
			iso.pods = labels.Everything()
		}
		for _, d := range directions(np.Spec, report) {
			iso.rules[d] = []rule{}
		}
		if _, ok := iso.rules[Ingress]; ok {
			for i, r := range np.Spec.Ingress {
				field := fmt.Sprintf("ingress[%d]", i)
				iso.rules[Ingress] = append(iso.rules[Ingress], parseRule(np.Namespace, field, "from", r.From, r.Ports, report))
			}
		}
		if _, ok := iso.rules[Egress]; ok {
			for i, r := range np.Spec.Egress {
				field := fmt.Sprintf("egress[%d]", i)
				iso.rules[Egress] = append(iso.rules[Egress], parseRule(np.Namespace, field, "to", r.To, r.Ports, report))
			}
		}
		parsed = append(parsed, iso)
	}
	return parsed, problems
}

// directions that the policy isolates (NetworkPolicySpec.policyTypes: "If this field is not specified, it will default
// based on the existence of ingress or egress rules; policies that contain an egress section are assumed to affect
// egress, and all policies […] are assumed to affect ingress").
func directions(spec networkingv1.NetworkPolicySpec, report func(field, format string, args ...any)) []Direction {
	if len(spec.PolicyTypes) == 0 {
		if len(spec.Egress) > 0 {
			return []Direction{Ingress, Egress}
		}
		return []Direction{Ingress}
	}
	var ds []Direction
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			ds = append(ds, Ingress)
		case networkingv1.PolicyTypeEgress:
			ds = append(ds, Egress)
		default:
			report(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is neither Ingress nor Egress; both are isolated", t)
			return []Direction{Ingress, Egress}
		}
	}
	return ds
}

func parseRule(namespace, field, verb string, peers []networkingv1.NetworkPolicyPeer, list []networkingv1.NetworkPolicyPort,
	report func(field, format string, args ...any),
) rule {
	r := rule{field: field}
	r.ports = parsePorts(list, func(f, format string, args ...any) { report("spec."+field+"."+f, format, args...) })
	if len(peers) == 0 {
		r.peers = []peer{{field: field, everyone: true, words: "everyone"}}
	}
	for i, np := range peers {
		p := peer{field: fmt.Sprintf("%s.%s[%d]", field, verb, i)}
		var wrong string
		var err error
		switch {
		case np.IPBlock != nil && (np.PodSelector != nil || np.NamespaceSelector != nil):
			wrong, err = "ipBlock", fmt.Errorf("must stand alone, without podSelector and namespaceSelector")
		case np.IPBlock != nil:
			p.words = describeIPBlock(*np.IPBlock)
			p.prefixes, wrong, err = parseIPBlock(*np.IPBlock)
		case np.PodSelector == nil && np.NamespaceSelector == nil:
			wrong, err = "podSelector", fmt.Errorf("is missing, as are namespaceSelector and ipBlock; nobody is meant")
		default:
			var s selector
			if s, wrong, err = parseSelector(namespace, np); err == nil {
				p.selector, p.words = &s, s.String()
			}
		}
		if err != nil {
			report("spec."+p.field+"."+wrong, "%v", err)
			continue
		}
		r.peers = append(r.peers, p)
	}
	return r
}
