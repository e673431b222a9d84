package nftables

import (
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

var tableName = nftnl.WeirTable(conf.IPv4).Name

var tables = [len(conf.Families)]nftnl.Table{
	conf.IPv4: nftnl.WeirTable(conf.IPv4), conf.IPv6: nftnl.WeirTable(conf.IPv6),
}

type kernelTable struct {
	exists bool
	off    bool // true if the table has a flag, usually because another program has switched it off
	sets   map[string]kernelSet
	chains map[string]nftnl.Rules
	// misplaced has chains that are at wrong hooks, or that drop packets by their policy.
	misplaced []string
}

type kernelSet struct {
	layout  nftnl.Layout
	unknown bool // true if the set has none of weir's layouts, so it isn't weir's
	odd     bool // true if the set has an element that its layout doesn't allow; entries lacks the element
	entries ruleset.Entries
}

func (s kernelSet) same(o kernelSet) bool {
	return s.layout == o.layout && s.unknown == o.unknown && s.odd == o.odd && s.entries.Same(o.entries)
}

type state [len(conf.Families)]kernelTable

func newKernelTable() kernelTable {
	return kernelTable{sets: map[string]kernelSet{}, chains: map[string]nftnl.Rules{}}
}

// share makes the tables k and want use the same memory for sets with equal entries, so that later comparisons are
// quick.
func (k kernelTable) share(want *table) {
	for _, s := range want.sets {
		if had, ok := k.sets[s.Name]; ok && !had.entries.Same(s.entries) && had.entries.Equal(s.entries) {
			had.entries = s.entries
			k.sets[s.Name] = had
		}
	}
}

// stands reports whether weir's chains are complete enough to check every packet of a pod. It doesn't compare the rules
// with the wanted ones, because another version of weir may have made the rules.
func (k kernelTable) stands(want *table) bool {
	if !k.exists || k.off || len(k.misplaced) > 0 {
		return false
	}
	for _, c := range want.chains {
		if c.Hook != nil && len(k.chains[c.Name].Sums) == 0 {
			return false
		}
	}
	for _, c := range k.chains {
		if slices.ContainsFunc(c.To, func(to string) bool { return len(k.chains[to].Sums) == 0 }) {
			return false
		}
	}
	for _, direction := range []struct{ chain, verdicts string }{
		{conf.EgressChain, conf.EgressMap}, {conf.IngressChain, conf.IngressMap},
	} {
		if !k.chains[direction.chain].Drops {
			return false
		}
		classes := map[string]bool{}
		for e := range k.sets[want.family.Set(direction.verdicts)].entries.All() {
			classes[target(e.Comment)] = true
		}
		for class := range classes {
			if class != "" && !k.decides(class) {
				return false
			}
		}
	}
	return true
}

// decides reports whether the chain ends with a rule that drops, or with the two rules of audited policies (log and
// return). It also returns true if the chain's last rule goes to such a chain: an interrupted change leaves pods in
// temporary chains of this form (change.through).
func (k kernelTable) decides(chain string) bool {
	for range maxDepth {
		c := k.chains[chain]
		if c.Drops || c.Audits {
			return true
		}
		chain = c.Last
	}
	return false
}
