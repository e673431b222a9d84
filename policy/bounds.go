package policy

import (
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
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
	// maxSets is how many sets the policies of one namespace may have on a node, not counting those that others' have made.
	// The kernel has room for 65,533 (IPSET_INVALID_ID in include/uapi/linux/netfilter/ipset/ip_set.h), and while one state
	// takes another's place those of both are there. The bound is a namespace's, so that no tenant takes the room of others.
	maxSets = 1 << 12
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
		report("spec."+r.field, tooLarge+"%d rules of the kernel's, and may be %d; it lets nothing through. Write it as several policies", with.rules, maxRules)
	case with.entries > maxEntries:
		report("spec."+r.field, tooLarge+"%d networks and ports, and may be %d; it lets nothing through", with.entries, maxEntries)
	default:
		*s = with
		return r
	}
	r.peers = nil
	return r
}

// filled makes a set that the policy's rules go by, if no other policy has made it. It says why there can't be such a set;
// nobody is let through by it then.
func (c *compiler) filled(iso isolation, name string, fill func() Set) (why string) {
	if _, ok := c.sets[name]; ok {
		return ""
	}
	if why, ok := c.overfull[name]; ok {
		return why
	}
	if c.made[iso.namespace] == maxSets {
		return fmt.Sprintf("its set would be one more than the %d that policies of a namespace may have on a node; nobody is let through by it", maxSets)
	}
	c.set(fill())
	if n := len(c.sets[name].Entries); n > conf.MaxSetEntries {
		delete(c.sets, name)
		c.overfull[name] = fmt.Sprintf("means %d addresses, and a set holds %d; nobody is let through by it", n, conf.MaxSetEntries)
		return c.overfull[name]
	}
	c.made[iso.namespace]++
	return ""
}

// report says it of a policy once, however many classes the policy is in.
func (c *compiler) report(iso isolation, field, why string) {
	p := Problem{"NetworkPolicy " + iso.name, "spec." + field, why}
	if told := c.reported[iso.name]; len(told) < maxProblems && !slices.Contains(told, p) {
		c.reported[iso.name] = append(told, p)
		c.out.Problems = append(c.out.Problems, p)
	}
}
