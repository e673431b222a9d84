package policy

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
	// maxPortRules is how many of the kernel's rules one protocol's ports may take. A packet walks through all of them, so
	// more ports than that are a set, which costs the same whatever it has.
	maxPortRules = 4
	// portsPerRule is how many ports the bounds take one of the kernel's rules to match. A range counts as two.
	portsPerRule = 15
	// maxProblems is how many problems are told of one policy: who sees these knows enough, and 100,000 lines would
	// hide those of other objects.
	maxProblems = 50
)

// tooLarge begins what is said of a policy that is larger than the bounds.
const tooLarge = "with it the policy needs "

// size is what a policy makes of rules and of sets' entries.
type size struct{ rules, entries int }

// bound takes the rule's peers away if the policy would be too large with it.
func (s *size) bound(r rule, report func(field, format string, args ...any)) rule {
	with := size{s.rules, s.entries}
	for _, p := range r.peers {
		with.entries += len(p.networks)
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

// rules returns how many of the kernel's rules match the ports.
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
