package nftables

import (
	"context"
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// Inspect compares weir's rules in the kernel with the ruleset. It also returns the elements of the kernel's sets
// that match the packets. It changes nothing, and may run at the same time as all other methods.
//
// Equivalent to: nft list table ip weir; nft get element ip weir SET { ADDRESS }, for each set and address
func (d *Driver) Inspect(
	_ context.Context, want ruleset.Ruleset, packets []ruleset.Packet,
) (all netfilter.Inspection, err error) {
	own := New()
	defer own.Close()
	l := new(lowering).lower(want)
	var have state
	for _, f := range conf.Families {
		of := func(p ruleset.Packet) bool { return conf.FamilyOf(p.Dst) == f }
		if l[f] == nil || !slices.ContainsFunc(packets, of) {
			continue
		}
		if have[f], err = own.readTable(f); err != nil {
			all.Unread = err.Error()
			continue
		}
		all.Wrong = append(all.Wrong, have[f].wrong(l[f])...)
	}
	all.Ruleset, err = inKernel(want, l, packets)
	return all, err
}

func (k kernelTable) wrong(want *table) (wrong []string) {
	name := fmt.Sprintf("the table %s %s", (&statement{family: want.family}).ip(), tableName)
	if !k.exists {
		return []string{name + " is missing"}
	}
	if k.off {
		wrong = append(wrong, name+" is switched off")
	}
	for _, c := range k.misplaced {
		wrong = append(wrong, fmt.Sprintf("the chain %s of %s is at another hook", c, name))
	}
	for _, c := range want.chains {
		had, ok := k.chains[c.Name]
		switch {
		case !ok:
			wrong = append(wrong, fmt.Sprintf("the chain %s of %s is missing", c.Name, name))
		case !slices.Equal(had.Sums, c.written.Sums):
			wrong = append(wrong, fmt.Sprintf("the chain %s of %s has other rules than the policies need", c.Name, name))
		}
	}
	for _, s := range want.sets {
		if had, ok := k.sets[s.Name]; !ok || had.unknown || had.layout != s.Layout {
			wrong = append(wrong, fmt.Sprintf("the set %s is missing", s.Name))
		}
	}
	return wrong
}

func inKernel(want ruleset.Ruleset, l lowered, packets []ruleset.Packet) (ruleset.Ruleset, error) {
	var questions []nftnl.Question
	type place struct {
		set     int // index in want.Sets
		element ruleset.Element
	}
	var places []place
	for i, s := range want.Sets {
		for _, e := range netfilter.Elements(s, packets) {
			f := s.Family
			if s.Kind == ruleset.Ports && len(packets) > 0 {
				f = conf.FamilyOf(packets[0].Dst)
			}
			of, ok := in(l[f], s)
			if !ok {
				continue
			}
			key := of.elementOf(ruleset.Entry{Element: e})
			questions = append(questions, nftnl.Question{Table: tables[f], Set: of.Set, Element: key})
			places = append(places, place{i, e})
		}
	}
	found, err := nftnl.Find(questions)
	if err != nil {
		return ruleset.Ruleset{}, err
	}
	entries := make([][]ruleset.Entry, len(want.Sets))
	for i, at := range places {
		if found[i] == nil {
			continue
		}
		s := want.Sets[at.set]
		if s.Role == ruleset.Members && found[i].Verdict.Chain != targetOf(want, s) {
			continue
		}
		entries[at.set] = append(entries[at.set], ruleset.Entry{Element: at.element})
	}
	all := want
	all.Sets = slices.Clone(want.Sets)
	for i := range all.Sets {
		all.Sets[i].Entries = ruleset.EntriesOf(entries[i]...)
	}
	return all, nil
}

func in(t *table, s ruleset.Set) (set, bool) {
	if t == nil {
		return set{}, false
	}
	name := s.Name
	if s.Role == ruleset.Members {
		name = s.Family.Set(mapOf(s.Dispatch))
	}
	return t.find(name)
}

func targetOf(want ruleset.Ruleset, s ruleset.Set) string {
	c, _ := want.Chain(s.Family, s.Dispatch)
	for _, r := range c.Rules {
		if len(r.Sets) == 1 && r.Sets[0].Name == s.Name {
			return r.To
		}
	}
	return ""
}
