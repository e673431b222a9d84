package nftables

import (
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// tableName is the name of weir's tables: one of the family ip, and one of ip6.
var tableName = nftnl.WeirTable(conf.IPv4).Name

var tables = [len(conf.Families)]nftnl.Table{
	conf.IPv4: nftnl.WeirTable(conf.IPv4), conf.IPv6: nftnl.WeirTable(conf.IPv6),
}

// held is what the kernel has of a table.
type held struct {
	exists bool
	off    bool // another program has switched the table off
	sets   map[string]heldSet
	// chains are the rules of each chain. Chains without rules are among them.
	chains map[string]nftnl.Rules
	// misplaced are chains that the ruleset has at another hook, or that drop what reaches their end.
	misplaced []string
}

// heldSet is what the kernel has of a set.
type heldSet struct {
	layout nftnl.Layout
	// unknown is true if the set has a layout that no set of weir's has.
	unknown bool
	// odd is true if the set has elements that no set of its layout has.
	odd     bool
	entries ruleset.Entries
}

// same reports whether the sets are the same, and share their entries' memory.
func (s heldSet) same(o heldSet) bool {
	return s.layout == o.layout && s.unknown == o.unknown && s.odd == o.odd && s.entries.Same(o.entries)
}

// state is what the kernel has of weir's tables.
type state [len(conf.Families)]held

func newHeld() held { return held{sets: map[string]heldSet{}, chains: map[string]nftnl.Rules{}} }

// share puts the wanted entries into the state wherever the two are equal, so that a later comparison of the two ends
// at once.
func (h held) share(want *table) {
	for _, s := range want.sets {
		if had, ok := h.sets[s.Name]; ok && !had.entries.Same(s.entries) && had.entries.Equal(s.entries) {
			had.entries = s.entries
			h.sets[s.Name] = had
		}
	}
}

// stands reports whether no packet of a pod can pass the table without a check. It requires that the chains at hooks
// have rules, that no rule leads to an empty chain, that the chains that send packets to classes end in a rule that
// drops, and so do all chains that the maps lead to. The chain of audited policies may instead end in a return behind a
// rule that logs what the policies would drop. stands doesn't compare the other rules: another version's rules may
// differ.
func (h held) stands(want *table) bool {
	if !h.exists || h.off || len(h.misplaced) > 0 {
		return false
	}
	for _, c := range want.chains {
		if c.Hook != nil && len(h.chains[c.Name].Sums) == 0 {
			return false
		}
	}
	for _, c := range h.chains {
		if slices.ContainsFunc(c.To, func(to string) bool { return len(h.chains[to].Sums) == 0 }) {
			return false
		}
	}
	for _, direction := range []struct{ chain, verdicts string }{
		{conf.EgressChain, conf.EgressMap}, {conf.IngressChain, conf.IngressMap},
	} {
		if !h.chains[direction.chain].Drops {
			return false
		}
		classes := map[string]bool{}
		for e := range h.sets[want.family.Set(direction.verdicts)].entries.All() {
			classes[target(e.Comment)] = true
		}
		for class := range classes {
			if c := h.chains[class]; class != "" && !c.Drops && !c.Audits {
				return false
			}
		}
	}
	return true
}
