package nftables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy/ruleset"
)

// Lacks makes rules, and sends test packets through them, to find out whether the node's nf_tables can do what weir
// needs (see package probe). It returns a sentence for each rule or kind of set that the kernel refuses, or that has no
// effect. An error means that a thread couldn't leave the trial's network namespace (see probe.Apart). The sentences
// are right in this case too.
func Lacks(context.Context) (all []string, err error) {
	families := probe.Families()
	err = probe.Apart(func() {
		for _, f := range families {
			if len(all) == 0 {
				all = lacksIn(f)
			}
		}
	})
	return all, err
}

func lacksIn(f conf.Family) (list []string) {
	t := probe.New(f)
	defer func() { _ = t.Close() }()
	at := trialTable(tables[f].Family)
	endTrial(at) // removes what a killed agent may have left
	defer endTrial(at)
	want := loweredTrial(t)
	if err := trialBatch(at, want, nil).Commit(); err != nil {
		return refusedNeeds(at, want, err)
	}
	wrong, err := t.Wrong(func() { endTrial(at) })
	if err != nil {
		// The packets prove nothing: they can't be sent, or other rules disturb them. But the kernel has accepted all
		// rules of the trial.
		return nil
	}
	for _, n := range wrong {
		list = append(list, n.Name+" (nf_tables accepts them, and they have no effect)")
	}
	return list
}

func trialTable(family uint8) nftnl.Table { return nftnl.Table{Family: family, Name: conf.TrialSet} }

// endTrial removes the table of a trial.
//
// Equivalent to: nft delete table ip weir-trial (ip6 for IPv6)
func endTrial(at nftnl.Table) {
	var b nftnl.Batch
	b.DeleteTable(at)
	_ = b.Commit() // usually there is no such table
}

// loweredTrial returns the trial's table. It adds rules that no packet of the trial matches, for example about ICMP:
// the trial checks only that the kernel accepts these rules.
func loweredTrial(t *probe.Trial) *table {
	f := t.Family
	pods := ruleset.Set{Name: f.Set(conf.PodsSet), Kind: ruleset.Addresses, Family: f, Role: ruleset.Attached}
	pods.Entries = t.Sets[0].Entries // the lowering also makes the sets of address pairs from these entries
	links := ruleset.Set{Name: f.Set(conf.LinksSet), Kind: ruleset.AddressLinks, Family: f, Role: ruleset.Checked}
	rules := t.Rules()
	never := []ruleset.Rule{
		{Shape: ruleset.HonestICMP, Track: ruleset.Related},
		{Shape: ruleset.NoICMPError},
		{Sets: []ruleset.SetMatch{{Name: links.Name, By: ruleset.SourceLink}}},
	}
	if f == conf.IPv6 {
		never = append(never, ruleset.Rule{Shape: ruleset.Solicitation}, ruleset.Rule{Shape: ruleset.Advertisement})
	}
	for _, r := range never {
		r.In, r.Action = probe.NoLink, ruleset.Return
		rules = append(rules, r)
	}
	r := ruleset.Ruleset{
		Sets: append(slices.Clone(t.Sets), pods, links),
		Chains: append(slices.Clone(t.Chains),
			ruleset.Chain{Family: f, Name: conf.TrialChain, Hook: ruleset.CheckToNode, Rules: rules},
			ruleset.Chain{Family: f, Name: conf.PostroutingChain, Hook: ruleset.TranslateSource, Rules: t.Masquerades()}),
	}
	m := &lowering{lacks: lacks{ports: true, logs: true}} // weir can do without matches of bridge ports, and without logs
	return m.lower(r)[f]
}

// trialBatch returns the transaction that makes the trial's table. If the function chosen is nil, the chains have all
// rules. Otherwise they have the rules for which chosen returns true.
func trialBatch(at nftnl.Table, want *table, chosen func(*rule) bool) *nftnl.Batch {
	b := &nftnl.Batch{}
	b.AddTable(at, nftnl.WeirTableComment)
	for _, c := range want.chains {
		b.AddChain(at, c.Chain)
	}
	for _, s := range want.sets {
		b.AddSet(at, s.Set, s.Name)
		b.AddElements(at, s.Set, s.elements(), s.Name, false)
	}
	for _, c := range want.chains {
		for i := range c.rules {
			r := &c.rules[i]
			if chosen != nil && !chosen(r) {
				continue
			}
			written, _ := r.write(want.family)
			b.AddRule(at, c.Name, written, r)
		}
	}
	return b
}

// refusedNeeds returns which sets and rules the kernel refuses. The kernel reports only the first refusals of a
// transaction, so refusedNeeds tries again without the refused rules.
func refusedNeeds(at nftnl.Table, want *table, all error) (list []string) {
	refused := map[any]bool{}
	for {
		var e *nftnl.RefusedError
		if !errors.As(all, &e) {
			return append(list, "nf_tables: "+all.Error())
		}
		more := false
		for _, r := range e.Refusals {
			words := "nf_tables: " + r.Err.Error()
			switch about := r.About.(type) {
			case string:
				words = "sets of nf_tables such as " + about + ": " + r.Err.Error()
			case *rule:
				if refused[about] {
					continue
				}
				refused[about], more = true, true
				_, text := withoutPorts(*about).write(want.family)
				words = fmt.Sprintf("rules of nf_tables like %q: %s", text, r.Err)
			}
			if !slices.Contains(list, words) {
				list = append(list, words)
			}
		}
		if !more {
			return list
		}
		if all = trialBatch(at, want, func(r *rule) bool { return !refused[r] }).Commit(); all == nil {
			return list
		}
	}
}

// withoutPorts returns the rule with port 1 instead of its ports, so that a message doesn't depend on the trial's
// random ports.
func withoutPorts(r rule) rule {
	if len(r.Ports) > 0 {
		r.Ports = []ruleset.PortRange{{First: 1, Last: 1}}
	}
	return r
}
