package iptables

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/policy/ruleset"
)

// linksEach limits the links that a set has for one network. Once a set has had 64 links for one network, the kernel
// may refuse further links, even if earlier links were deleted (AHASH_MAX_TUNED in
// net/netfilter/ipset/ip_set_hash_gen.h). A change adds new links before it deletes old ones, so a set may have twice
// linksEach for a moment.
const linksEach = 30

// partsOf divides a set that has more links for one network than linksEach: each part has at most linksEach links for
// each network. It returns any other set undivided.
func partsOf(s ruleset.Set) []ruleset.Set {
	if s.Kind != ruleset.AddressLinks || s.Entries.Len() <= linksEach {
		return []ruleset.Set{s}
	}
	var lists [][]ruleset.Entry
	known := map[netip.Prefix]int{} // how many links each network has so far
	for e := range s.Entries.All() {
		n := known[e.Prefix] / linksEach
		if known[e.Prefix]++; n == len(lists) {
			lists = append(lists, nil)
		}
		lists[n] = append(lists[n], e)
	}
	if len(lists) == 1 {
		return []ruleset.Set{s}
	}
	parts := make([]ruleset.Set, len(lists))
	for i, list := range lists {
		parts[i] = s
		parts[i].Entries = ruleset.EntriesOf(list...)
		if i > 0 {
			parts[i].Name = fmt.Sprintf("%s-%02d", s.Name, i+1)
		}
	}
	return parts
}

// divided has the names of divided sets, each with the names of its parts.
type divided map[string][]string

func (d divided) add(s ruleset.Set, all []ruleset.Set) {
	if len(all) == 1 {
		return
	}
	for _, part := range all {
		d[s.Name] = append(d[s.Name], part.Name)
	}
}

// usedBy counts the look-ups of divided sets in the rules. A look-up counts once for each part of its set.
func (d divided) usedBy(rules []ruleset.Rule) (n int) {
	if len(d) == 0 {
		return 0
	}
	for _, r := range rules {
		for _, m := range r.Sets {
			n += len(d[m.Name])
		}
	}
	return n
}

// rules returns the rules that replace r. If r looks up a divided set, the returned rules look up the set's parts. A
// rule looks up at most one divided set.
func (d divided) rules(r ruleset.Rule) []ruleset.Rule {
	i := slices.IndexFunc(r.Sets, func(m ruleset.SetMatch) bool { return len(d[m.Name]) > 0 })
	if i < 0 {
		return []ruleset.Rule{r}
	}
	var all []ruleset.Rule
	var matches []ruleset.SetMatch
	for _, name := range d[r.Sets[i].Name] {
		one := r
		one.Sets = slices.Clone(r.Sets)
		one.Sets[i].Name = name
		all, matches = append(all, one), append(matches, one.Sets[i])
	}
	if r.Sets[i].Not { // one rule for all parts: it matches only if no part has the entry
		r.Sets = slices.Replace(slices.Clone(r.Sets), i, i+1, matches...)
		return []ruleset.Rule{r}
	}
	return all
}
