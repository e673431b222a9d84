package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
)

// Inspect compares weir's rules in the kernel with the ruleset. For the set entries that rules look up for the given
// packets, it also returns which of them are in the kernel. It changes nothing, and may run at the same time as all
// other methods.
//
// Equivalent to: iptables-save -t mangle; ipset test SET ENTRY, for each set and each packet
func (d *Driver) Inspect(
	ctx context.Context, want ruleset.Ruleset, packets []ruleset.Packet,
) (all netfilter.Inspection, err error) {
	flavour := d.detected.Load()
	if flavour == nil {
		return all, errors.New("the agent doesn't know yet which iptables the node uses")
	}
	sets, err := ipset.New()
	if err != nil {
		return all, err
	}
	own := newDriver(sets)
	own.Flavour = *flavour
	defer own.Close()
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	k, err := own.inspected(ctx, want, packets)
	if err != nil {
		return all, err
	}
	for _, f := range conf.Families {
		if t, read := k.have.tables[f][checks]; read && t.unknown != nil {
			all.Unread = t.unknown.why.Error()
		} else if read {
			all.Wrong = append(all.Wrong, own.wrongRules(f, t, k.want)...)
		}
	}
	var missing map[string]bool
	all.Ruleset, missing, err = k.inKernel(want, packets)
	for _, s := range want.Sets {
		for _, part := range partsOf(s) {
			if missing[part.Name] {
				all.Wrong = append(all.Wrong, fmt.Sprintf("the set %s is missing", part.Name))
			}
		}
	}
	return all, err
}

type inspected struct {
	have state // has only the table mangle, and the sets of kind numberedPods
	want *lowered
}

func (d *Driver) inspected(
	ctx context.Context, want ruleset.Ruleset, packets []ruleset.Packet,
) (k inspected, err error) {
	k.have.sets = map[string]set{}
	var n numbers
	for _, f := range conf.Families {
		if !slices.ContainsFunc(packets, func(p ruleset.Packet) bool { return conf.FamilyOf(p.Dst) == f }) {
			continue
		}
		d.wanted[f] = want.Has(f)
		k.have.tables[f] = tables{checks: d.readText(ctx, f, checks, nil)}
		numbered := want.Has(f)
		for _, at := range dispatches {
			name := f.Set(at.set)
			s, err := d.readSet(name, set{})
			switch {
			case errors.Is(err, ipset.ErrNotExist):
				numbered = false
			case err != nil:
				return k, err
			default:
				k.have.sets[name] = s
			}
		}
		if numbered {
			n[f] = new(lowering).numbers(&k.have, f, want)
		}
	}
	k.want = new(lowering).lower(want, n)
	return k, nil
}

func (k inspected) hasClass(s ruleset.Set, e ruleset.Element) (has, known bool) {
	if s.Role != ruleset.Members || k.want.numbers[s.Family] == nil {
		return false, false
	}
	numbered := s.Family.Set(dispatches[s.Dispatch].set)
	text, in := k.have.sets[numbered].entries.Get(e)
	if n := k.have.tables[s.Family][checks].numbers[s.Dispatch]; in && n != nil {
		number, _ := splitNumber(text)
		for _, c := range k.want.classes[numbered] {
			has = has || c.set == s.Name && c.target == n.leaves[number]
		}
	}
	return has, true
}

func (d *Driver) wrongRules(f conf.Family, t table, want *lowered) (wrong []string) {
	if t.dormant {
		wrong = append(wrong, fmt.Sprintf("the table %s of %s is switched off", checks, d.Flavour.program(f)))
	}
	for _, c := range want.chains {
		if c.family != f || c.table != checks || t.is(c.name, c.lines) {
			continue
		}
		how := "has other rules than the policies need"
		if _, exists := t.rules[c.name]; !exists {
			how = "is missing"
		}
		wrong = append(wrong, fmt.Sprintf("the chain %s of %s %s", c.name, d.Flavour.program(f), how))
	}
	if len(jumps(f, checks, t, want)) > 0 || len(t.misplaced) > 0 {
		wrong = append(wrong, fmt.Sprintf("packets of %s don't come to weir's chains first", f))
	}
	return wrong
}

func (k inspected) inKernel(want ruleset.Ruleset, packets []ruleset.Packet) (ruleset.Ruleset, map[string]bool, error) {
	var questions []ipset.Question
	entries := make([][]ruleset.Entry, len(want.Sets))
	at := []int{}
	for i, s := range want.Sets {
		for _, e := range netfilter.Elements(s, packets) {
			has, known := k.hasClass(s, e)
			if has {
				entries[i] = append(entries[i], ruleset.Entry{Element: e})
			}
			for _, part := range partsOf(s) {
				if known {
					continue
				}
				entry := entryOf(ruleset.Entry{Element: e}, part.Name)
				questions = append(questions, ipset.Question{Set: part.Name, Entry: entry})
				at = append(at, i)
			}
		}
	}
	contains, missing, err := ipset.Contains(questions)
	if err != nil {
		return ruleset.Ruleset{}, nil, err
	}
	for q, yes := range contains {
		if yes {
			entries[at[q]] = append(entries[at[q]], ruleset.Entry{Element: element(questions[q].Entry)})
		}
	}
	all := want
	all.Sets = slices.Clone(want.Sets)
	for i := range all.Sets {
		all.Sets[i].Entries = ruleset.EntriesOf(entries[i]...)
	}
	return all, missing, nil
}
