package policy

import (
	"slices"
	"strings"

	"github.com/weir-net/weir/policy/ruleset"
)

// Bounds of what the kernel is given. They are far above what people write, and keep one object from costing a node so
// much that all others' changes wait for it. What is beyond lets nothing through and is reported; no part of it is let
// through by chance.
const (
	// maxRules is how many rules of the kernel's one policy may become. Each new connection of its pods may walk through
	// all of them, and for each selector among them all pods are looked through whenever something changes.
	maxRules = 1 << 10
	// maxEntries is how many networks and ports one policy's sets may hold. The API server takes objects of 1.5 MB, some
	// 40,000 ipBlocks, but a few excepts can cut a block into many more networks than they are. Writing this many takes
	// the kernel a second.
	maxEntries = 1 << 17
	// maxNodeRules, maxNodeSets and maxNodeEntries are how much of a node's kernel the policies of all its pods may
	// take, the sets and chains of the pods' classes not counted, of which there are no more than pods. While one state
	// takes another's place those of both are there.
	//
	// The kernel has room for 65,533 sets (IPSET_INVALID_ID in include/uapi/linux/netfilter/ipset/ip_set.h), others'
	// among them. Writing so many rules takes iptables a second, and so many entries the kernel ten; an entry takes
	// some 200 bytes.
	maxNodeRules   = 1 << 15
	maxNodeSets    = 1 << 13
	maxNodeEntries = 1 << 20
	// maxProblems is how many problems are told of one policy: who sees these knows enough, and 100,000 lines would
	// hide those of other objects.
	maxProblems = 50
)

// tooLarge begins what is said of a policy that is larger than the bounds.
const tooLarge = "with it the policy is "

// size is what a policy makes of rules and of sets' entries.
type size struct{ rules, entries int }

// bound takes the rule's peers away if the policy would be too large with it.
func (s *size) bound(r rule, report func(field, format string, args ...any)) rule {
	with := size{s.rules + len(r.peers)*len(r.ports), s.entries}
	for _, p := range r.peers {
		with.entries += len(p.networks)
	}
	for _, p := range r.ports {
		with.entries += count(p.numbers)
	}
	switch {
	case with.rules > maxRules:
		report("spec."+r.field, tooLarge+"%d rules of the kernel's, and may be %d; it lets nothing through. Write it as several policies",
			with.rules, maxRules)
	case with.entries > maxEntries:
		report("spec."+r.field, tooLarge+"%d networks and ports, and may be %d; it lets nothing through", with.entries, maxEntries)
	default:
		*s = with
		return r
	}
	r.peers = nil
	return r
}

// report says it of a policy once, however many classes the policy is in.
func (c *compiler) report(iso isolation, field, why string) {
	p := ruleset.Problem{Object: "NetworkPolicy " + strings.TrimSuffix(iso.name, maybeSuffix), Field: "spec." + field, Message: why}
	if told := c.reported[iso.name]; len(told) < maxProblems && !slices.Contains(told, p) {
		c.reported[iso.name] = append(told, p)
		c.out.Problems = append(c.out.Problems, p)
	}
}
