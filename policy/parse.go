package policy

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// parsedPolicy is a NetworkPolicy, parsed: which pods it isolates in which directions, and what it lets through.
type parsedPolicy struct {
	name      string // namespace/name
	namespace string
	pods      labels.Selector
	rules     map[ruleset.Direction][]rule // a direction that is absent isn't isolated
	problems  []ruleset.Problem            // what of it can't be read
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
	networks []ruleset.Entry // of the ipBlocks; those of one list are one peer
	set      string          // its name in IPv4; empty if nobody can ever be in it
	words    string
}

// means says whether anybody of the family can ever be meant.
func (p peer) means(f conf.Family) bool {
	for range p.of(f) {
		return true
	}
	return p.everyone || p.selector != nil
}

// of are the networks of the family.
func (p peer) of(f conf.Family) iter.Seq[ruleset.Entry] {
	return func(yield func(ruleset.Entry) bool) {
		for _, e := range p.networks {
			if conf.FamilyOf(e.Prefix.Addr()) == f && !yield(e) {
				return
			}
		}
	}
}

// Parsed are policies that were read.
type Parsed struct {
	list     []*networkingv1.NetworkPolicy
	each     map[*networkingv1.NetworkPolicy]parsedPolicy
	in       map[string][]parsedPolicy // by namespace, in the order of their names
	problems []ruleset.Problem         // what can't be read of them
}

// Parse reads the policies. Those that before holds were read then, so that each is read once however often a state
// changes; before may be nil. Nobody changes a policy that was given to it.
func Parse(list []*networkingv1.NetworkPolicy, before *Parsed) *Parsed {
	if before == nil {
		before = &Parsed{}
	}
	if slices.Equal(list, before.list) {
		return before
	}
	p := &Parsed{
		list: slices.Clone(list), each: make(map[*networkingv1.NetworkPolicy]parsedPolicy, len(list)),
		in: map[string][]parsedPolicy{},
	}
	for _, np := range slices.SortedFunc(slices.Values(list), func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	}) {
		policy, ok := before.each[np]
		if !ok {
			policy = parse(np)
		}
		p.each[np] = policy
		p.in[policy.namespace] = append(p.in[policy.namespace], policy)
		p.problems = append(p.problems, policy.problems...)
	}
	return p
}

// reporter takes problems with fields of one policy.
type reporter func(field, format string, args ...any)

// parse reads a policy. What can't be read is reported, and closes rather than opens: a podSelector that doesn't parse
// isolates every pod of its namespace and lets nothing through, since whom its rules were meant for is unknown; a
// policyType that doesn't exist isolates both directions; a peer or port that doesn't parse lets nothing through.
func parse(np *networkingv1.NetworkPolicy) parsedPolicy {
	policy := parsedPolicy{
		name: np.Namespace + "/" + np.Name, namespace: np.Namespace, rules: map[ruleset.Direction][]rule{},
	}
	report := func(field, format string, args ...any) {
		if len(policy.problems) < maxProblems {
			policy.problems = append(policy.problems, ruleset.Problem{
				Object: "NetworkPolicy " + policy.name, Field: field, Message: fmt.Sprintf(format, args...),
			})
		}
	}
	var err error
	if policy.pods, err = metav1.LabelSelectorAsSelector(&np.Spec.PodSelector); err != nil {
		report("spec.podSelector", "%v; every pod in namespace %s is isolated, and the policy lets nothing through",
			err, np.Namespace)
		policy.pods = labels.Everything()
	}
	for _, d := range directions(np.Spec, report) {
		policy.rules[d] = []rule{}
	}
	if err != nil {
		return policy
	}
	var size size
	add := func(d ruleset.Direction, r rule) { policy.rules[d] = append(policy.rules[d], size.bound(r, report)) }
	if _, ok := policy.rules[ruleset.Ingress]; ok {
		for i, r := range np.Spec.Ingress {
			add(ruleset.Ingress, parseRule(np.Namespace, fmt.Sprintf("ingress[%d]", i), "from", r.From, r.Ports, report))
		}
	}
	if _, ok := policy.rules[ruleset.Egress]; ok {
		for i, r := range np.Spec.Egress {
			add(ruleset.Egress, parseRule(np.Namespace, fmt.Sprintf("egress[%d]", i), "to", r.To, r.Ports, report))
		}
	}
	return policy
}

// directions that the policy isolates (NetworkPolicySpec.policyTypes: "If this field is not specified, it will default
// based on the existence of ingress or egress rules; policies that contain an egress section are assumed to affect
// egress, and all policies […] are assumed to affect ingress").
func directions(spec networkingv1.NetworkPolicySpec, report reporter) []ruleset.Direction {
	if len(spec.PolicyTypes) == 0 {
		if len(spec.Egress) > 0 {
			return []ruleset.Direction{ruleset.Ingress, ruleset.Egress}
		}
		return []ruleset.Direction{ruleset.Ingress}
	}
	var ds []ruleset.Direction
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			ds = append(ds, ruleset.Ingress)
		case networkingv1.PolicyTypeEgress:
			ds = append(ds, ruleset.Egress)
		default:
			report(fmt.Sprintf("spec.policyTypes[%d]", i), "%q is neither Ingress nor Egress; both are isolated", t)
			return []ruleset.Direction{ruleset.Ingress, ruleset.Egress}
		}
	}
	return ds
}

func parseRule(
	namespace, field, verb string, peers []networkingv1.NetworkPolicyPeer, list []networkingv1.NetworkPolicyPort,
	report reporter,
) rule {
	r := rule{field: field}
	r.ports = parsePorts(list, func(f, format string, args ...any) { report("spec."+field+"."+f, format, args...) })
	if len(peers) == 0 {
		r.peers = []peer{{field: field, everyone: true, words: "everyone"}}
	}
	var blocks []block
	for i, np := range peers {
		p := peer{field: fmt.Sprintf("%s.%s[%d]", field, verb, i)}
		var wrong string
		var err error
		switch {
		case np.IPBlock != nil && (np.PodSelector != nil || np.NamespaceSelector != nil):
			wrong, err = "ipBlock", fmt.Errorf("must stand alone, without podSelector and namespaceSelector")
		case np.IPBlock != nil:
			var prefixes []netip.Prefix
			if prefixes, wrong, err = parseIPBlock(*np.IPBlock); err == nil {
				blocks = append(blocks, block{p.field, describeIPBlock(*np.IPBlock), prefixes})
				continue
			}
		case np.PodSelector == nil && np.NamespaceSelector == nil:
			wrong, err = "podSelector", fmt.Errorf("is missing, as are namespaceSelector and ipBlock; nobody is meant")
		default:
			var s selector
			if s, wrong, err = parseSelector(namespace, np); err == nil {
				p.selector, p.set, p.words = &s, conf.SelectorSets+ruleset.Hash(s.key()), s.String()
			}
		}
		if err != nil {
			report("spec."+p.field+"."+wrong, "%v", err)
			continue
		}
		r.peers = append(r.peers, p)
	}
	if len(blocks) > 0 {
		r.peers = append(r.peers, join(field+"."+verb, blocks))
	}
	return r
}
