package policy

import (
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/conf"
)

// Bounds of what a node's kernel gets. They are far above the sizes of policies that people write. They keep one
// object from holding up the changes of all others. A part of a policy that exceeds a bound allows nothing, and is
// reported as a problem.
const (
	// maxRules is the highest number of kernel rules for one policy. A first packet may be compared with all of them.
	maxRules = 1 << 10
	// maxEntries is the highest number of networks and ports in the sets of one policy. A few excepts can cut a block
	// into many networks. The kernel needs a second to write maxEntries entries.
	maxEntries = 1 << 17
	// maxNodeRules, maxNodeSets and maxNodeEntries are the highest numbers for all policies on a node. The sets and
	// chains of classes don't count: there are no more classes than pods. During a change the kernel has both old and
	// new ones.
	//
	// The kernel has room for 65,533 sets (IPSET_INVALID_ID in include/uapi/linux/netfilter/ipset/ip_set.h), including
	// those of other programs. iptables needs a second to write maxNodeRules rules. The kernel needs ten seconds to
	// write maxNodeEntries entries, and some 200 bytes for each.
	maxNodeRules   = 1 << 15
	maxNodeSets    = 1 << 13
	maxNodeEntries = 1 << 20
	// maxPortRules is the highest number of kernel rules for one protocol's ports. Beyond it, the ports become a port
	// set, where a look-up costs the same for any number.
	maxPortRules = 4
	// portsPerRule is how many ports one kernel rule can match. A range counts as two ports.
	portsPerRule = 15
	maxProblems  = 50
)

// maxBulk is the largest bulk of a policy that is parsed at once; larger ones wait for NextUnparsed. Tests make it
// smaller.
var maxBulk = 1 << 6

// bulk measures how long the policy's rules take to parse. It counts peers, ports and excepts; labels, expressions
// and values count for less.
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

// tooLarge begins the message of a problem about a policy that exceeds a bound.
const tooLarge = "with it the policy needs "

// size is how many kernel rules and set entries a policy needs.
type size struct{ rules, entries int }

// bound adds the rule's size and returns the rule. If the policy then exceeds a bound, it reports a problem and
// returns the rule without peers.
func (s *size) bound(r rule, report func(field, format string, args ...any)) rule {
	with := size{s.rules, s.entries}
	for _, p := range r.peers {
		with.entries += p.networks[conf.IPv4].Len() + p.networks[conf.IPv6].Len()
	}
	for _, p := range r.ports {
		with.rules += len(r.peers) * p.rules()
		with.entries += count(p.numbers)
	}
	switch {
	case with.rules > maxRules:
		report("spec."+r.field,
			tooLarge+"%d rules in the kernel, and the limit is %d; it allows nothing. Write it as several policies",
			with.rules, maxRules)
	case with.entries > maxEntries:
		report("spec."+r.field, tooLarge+"%d networks and ports, and the limit is %d; it allows nothing", with.entries,
			maxEntries)
	default:
		*s = with
		return r
	}
	r.peers = nil
	return r
}

// rules returns how many kernel rules the ports need for one peer. Ports in a set, or none, need one.
func (p ports) rules() int {
	rules, room := 0, 0
	for _, r := range p.ranges {
		need := 1
		if r.First != r.Last {
			need = 2
		}
		if room < need {
			rules, room = rules+1, portsPerRule
		}
		room -= need
	}
	return max(rules, 1)
}
