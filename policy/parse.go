package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type parsedPolicy struct {
	name      string // namespace/name
	namespace string
	pods      matcher
	rules     map[ruleset.Direction][]rule // only directions in which the policy isolates pods
	problems  []ruleset.Problem            // parts of the policy that can't be parsed
	invalid   []ruleset.Problem            // problems for which an API server would refuse the policy
	audited   bool
}

type rule struct {
	field string // the rule's field in the policy, such as "ingress[0]"
	peers []peer
	ports []ports
}

type peer struct {
	field    string
	everyone bool
	selector *selector
	networks [len(conf.Families)]ruleset.Entries // networks of all ipBlocks of the rule, by family
	set      string                              // name of the IPv4 set; empty if the peer is everyone, or has no networks
	comment  string                              // comment of the peer's rules in the kernel
}

func (p peer) means(f conf.Family) bool {
	return p.everyone || p.selector != nil || p.networks[f].Len() > 0
}

type parsed struct {
	in       map[string][]parsedPolicy // by namespace, ordered by name
	problems []ruleset.Problem         // parts of policies that can't be parsed
}

func parseAll(list []*networkingv1.NetworkPolicy) parsed {
	p := parsed{in: map[string][]parsedPolicy{}}
	for _, np := range list {
		policy := parse(np)
		p.in[policy.namespace] = append(p.in[policy.namespace], policy)
		p.problems = append(p.problems, policy.problems...)
	}
	for _, policies := range p.in {
		slices.SortFunc(policies, func(a, b parsedPolicy) int { return strings.Compare(a.name, b.name) })
	}
	return p
}

// Validate returns a problem for each part of the policy that can't be enforced as it is written.
func Validate(np *networkingv1.NetworkPolicy) []ruleset.Problem {
	return parse(np).problems
}

// Invalid returns the problems for which an API server would refuse the policy.
func Invalid(np *networkingv1.NetworkPolicy) []ruleset.Problem { return parse(np).invalid }

type reporter func(field, format string, args ...any)

// parse parses a policy. It reports each part that it can't parse, up to maxProblems. An error in the policy never
// allows more packets:
//
//   - If the podSelector is wrong, the policy isolates every pod of the namespace, and allows nothing.
//   - If a policyType is wrong, the policy isolates both directions.
//   - A wrong peer or port allows nothing.
func parse(np *networkingv1.NetworkPolicy) parsedPolicy { return parsePolicy(np, true) }

// parseHead parses a policy without its rules. The parsed policy allows nothing.
func parseHead(np *networkingv1.NetworkPolicy) parsedPolicy { return parsePolicy(np, false) }

func parsePolicy(np *networkingv1.NetworkPolicy, rules bool) parsedPolicy {
	policy := parsedPolicy{
		name: np.Namespace + "/" + np.Name, namespace: np.Namespace, rules: map[ruleset.Direction][]rule{},
	}
	own := func(field, format string, args ...any) { // own reports parts that an API server accepts and weir refuses
		if len(policy.problems) < maxProblems {
			policy.problems = append(policy.problems, ruleset.ProblemOfPolicy(policy.name, field, fmt.Sprintf(format, args...)))
		}
	}
	report := func(field, format string, args ...any) {
		before := len(policy.problems)
		own(field, format, args...)
		policy.invalid = append(policy.invalid, policy.problems[before:]...)
	}
	var err error
	if policy.audited, err = Audited(np); err != nil {
		own(auditField, "%v", err)
	}
	if policy.pods, err = newMatcher(&np.Spec.PodSelector); err != nil {
		report("spec.podSelector", "%v; every pod in namespace %s is isolated, and the policy allows nothing",
			err, np.Namespace)
		policy.pods = everything
	}
	for _, d := range directions(np.Spec, report) {
		policy.rules[d] = []rule{}
	}
	if err != nil || !rules {
		return policy
	}
	var size size
	p := parser{policy: policy.name, namespace: np.Namespace, report: report}
	add := func(d ruleset.Direction, r rule) { policy.rules[d] = append(policy.rules[d], size.bound(r, own)) }
	if _, ok := policy.rules[ruleset.Ingress]; ok {
		for i, r := range np.Spec.Ingress {
			add(ruleset.Ingress, p.rule(fmt.Sprintf("ingress[%d]", i), "from", r.From, r.Ports))
		}
	}
	if _, ok := policy.rules[ruleset.Egress]; ok {
		for i, r := range np.Spec.Egress {
			add(ruleset.Egress, p.rule(fmt.Sprintf("egress[%d]", i), "to", r.To, r.Ports))
		}
	}
	return policy
}

// directions returns the directions in which the policy isolates pods. Without policyTypes, a policy isolates ingress,
// and also egress if it has egress rules (NetworkPolicySpec.policyTypes).
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

type parser struct {
	policy    string // NAMESPACE/NAME
	namespace string
	report    reporter
	text      []byte // memory for the texts of selectors, used again for each peer
}

func (p *parser) rule(
	field, verb string, peers []networkingv1.NetworkPolicyPeer, list []networkingv1.NetworkPolicyPort,
) rule {
	r := rule{field: field}
	r.ports = parsePorts(list, func(f, format string, args ...any) { p.report("spec."+field+"."+f, format, args...) })
	if len(peers) == 0 {
		r.peers = []peer{{field: field, everyone: true, comment: p.comment(field, "everyone")}}
	}
	selectors := 0
	for i := range peers {
		if peers[i].IPBlock == nil {
			selectors++
		}
	}
	r.peers = slices.Grow(r.peers, selectors+min(len(peers)-selectors, 1))
	blocks, first := make([]block, 0, len(peers)-selectors), 0
	at := func(i int) string { return field + "." + verb + "[" + strconv.Itoa(i) + "]" }
	for i := range peers {
		np := &peers[i]
		var wrong string
		var err error
		switch {
		case np.IPBlock != nil && (np.PodSelector != nil || np.NamespaceSelector != nil):
			wrong, err = "ipBlock", fmt.Errorf("must stand alone, without podSelector and namespaceSelector")
		case np.IPBlock != nil:
			var prefixes []netip.Prefix
			if prefixes, wrong, err = parseIPBlock(*np.IPBlock); err != nil {
				break
			}
			if len(blocks) == 0 {
				first = i
			}
			blocks = append(blocks, block{describeIPBlock(*np.IPBlock), prefixes})
		case np.PodSelector == nil && np.NamespaceSelector == nil:
			wrong = "podSelector"
			err = fmt.Errorf("is missing, and so are namespaceSelector and ipBlock; the peer matches nothing")
		default:
			var s selector
			if s, wrong, err = p.selector(np); err == nil {
				r.peers = append(r.peers, p.selectorPeer(at(i), s))
			}
		}
		if err != nil {
			p.report("spec."+at(i)+"."+wrong, "%v", err)
		}
	}
	switch len(blocks) {
	case 0:
	case 1:
		r.peers = append(r.peers, p.blockPeer(at(first), blocks))
	default:
		r.peers = append(r.peers, p.blockPeer(field+"."+verb, blocks))
	}
	return r
}

func (p *parser) selectorPeer(field string, s selector) peer {
	p.text = s.appendTo(p.text[:0])
	return peer{field: field, selector: &s, set: conf.SelectorSets + s.key, comment: p.comment(field, string(p.text))}
}

func (p *parser) comment(field, words string) string {
	return "weir: " + p.policy + " " + field + ": " + words
}
