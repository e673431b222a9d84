package policy

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/conf"
)

const (
	// maxRules limits the kernel rules of one policy.
	maxRules = 1 << 10
	// maxEntries limits the networks and ports in the sets of one policy. Even a short policy may need many, because a few
	// excepts can divide an ipBlock into many networks.
	maxEntries = 1 << 17
	// maxNodeRules, maxNodeSets and maxNodeEntries limit all policies of a node together. Sets and chains of classes
	// don't count.
	//
	// maxNodeSets leaves enough sets for classes and for other programs. maxNodeRules rules and maxNodeEntries entries can
	// be written to the kernel in seconds.
	maxNodeRules   = 1 << 15
	maxNodeSets    = 1 << 13
	maxNodeEntries = 1 << 20
	// maxPortLists limits how many lists of port numbers the ports of one protocol in a policy's rule may need. If these
	// ports need more lists, a set of the numbers replaces the lists.
	maxPortLists = 4
	// PortsPerList is how many ports one list can have, as in the match multiport of iptables. A range counts as two
	// ports. Each list counts as a rule in the kernel, so each backend must be able to match a whole list with one rule.
	PortsPerList = 15
	maxProblems  = 50
)

// limits limit how much the policies of a node need. Tests have lower limits, which random clusters can exceed.
type limits struct {
	node       amount // what all policies of the node may need together
	setEntries int    // the most entries of one set
	// bulk limits the size of policies that are parsed immediately. Policies with a larger bulk (see the function bulk)
	// wait for NextUnparsed.
	bulk int
}

var usualLimits = limits{amount{maxNodeRules, maxNodeSets, maxNodeEntries}, conf.MaxSetEntries, 1 << 6}

// bulk estimates how long it takes to parse a policy. It is the number of peers, ports and excepts, plus an eighth for
// each label or expression of a selector, and a sixteenth for each value of an expression.
func bulk(np *networkingv1.NetworkPolicy) (n int) {
	add := func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
		n += len(peers) + len(ports)
		for i := range peers {
			for _, s := range [...]*metav1.LabelSelector{peers[i].PodSelector, peers[i].NamespaceSelector} {
				if s != nil {
					n += (len(s.MatchLabels) + len(s.MatchExpressions)) / 8
					for _, e := range s.MatchExpressions {
						n += len(e.Values) / 16
					}
				}
			}
			if peers[i].IPBlock != nil {
				n += len(peers[i].IPBlock.Except)
			}
		}
	}
	for _, r := range np.Spec.Ingress {
		add(r.From, r.Ports)
	}
	for _, r := range np.Spec.Egress {
		add(r.To, r.Ports)
	}
	return n
}

type size struct{ rules, entries int }

// bound returns the rule. If the policy exceeds a limit with this rule, bound reports a problem, and returns the rule
// without peers. Such a rule allows nothing.
func (s *size) bound(r rule, report reporter) rule {
	with := size{s.rules, s.entries}
	for _, p := range r.peers {
		with.entries += p.networks[conf.IPv4].Len() + p.networks[conf.IPv6].Len()
	}
	for _, p := range r.ports {
		with.rules += len(r.peers) * p.lists()
		with.entries += count(p.numbers)
	}
	switch {
	case with.rules > maxRules:
		report("spec."+r.field,
			"with it the policy needs %d rules in the kernel, and the limit is %d; it allows nothing. "+
				"Write it as several policies", with.rules, maxRules)
	case with.entries > maxEntries:
		report("spec."+r.field, "with it the policy needs %d networks and ports, and the limit is %d; it allows nothing",
			with.entries, maxEntries)
	default:
		*s = with
		return r
	}
	r.peers = nil
	return r
}

// lists returns how many lists of at most PortsPerList ports the ports need. If they need no list (for example, a
// named port), lists returns 1, because they still need a rule.
func (p ports) lists() int {
	lists, room := 0, 0
	for _, r := range p.ranges {
		need := 1
		if r.First != r.Last {
			need = 2
		}
		if room < need {
			lists, room = lists+1, PortsPerList
		}
		room -= need
	}
	return max(lists, 1)
}
