package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
)

func (d *Driver) makeSet(s ruleset.Set, refused ruleset.Refused) (*set, error) {
	header := headerOf(s)
	if err := d.sets.Create(header); err != nil {
		if !s.Opens || s.Kind == numberedPods {
			return nil, err
		}
		if s.Role == ruleset.Peers && d.tryType(header) != nil {
			what := "sets of type " + header.Type
			refused[ruleset.Refusal{Family: s.Family, SetKind: s.Kind}] = because(what, err)
		} else {
			refused[ruleset.Refusal{Family: s.Family, Set: s.Name}] = because("the set "+s.Name, err)
		}
		return nil, nil
	}
	made := &set{kind: s.Kind, family: s.Family, entries: s.Entries}
	changes := make([]change, 0, s.Entries.Len())
	for e := range s.Entries.All() {
		changes = append(changes, change{set: s.Name, Entry: e})
	}
	err := changeSets(changes, &lowered{sets: []ruleset.Set{s}}, refused)
	for r := range refused {
		if r.Set == s.Name {
			made.entries = made.entries.Without(r.Element)
		}
	}
	return made, err
}

// tryType returns an error if the kernel can't create sets of this type.
//
// Equivalent to: ipset create weir-trial TYPE && ipset destroy weir-trial
func (d *Driver) tryType(h ipset.Header) error {
	h.Name = conf.TrialSet
	if err := d.sets.Create(h); err != nil {
		return err
	}
	return d.sets.Destroy(h.Name)
}

// changeSets makes the changes. If the kernel refuses a new entry of a set that only allows packets (Opens), changeSets
// adds the entry to refused, and returns no error for it. If the kernel refuses a pod's new number, changeSets deletes
// the pod's entry, because the old number may allow more.
func changeSets(changes []change, want *lowered, refused ruleset.Refused) error {
	all := make([]ipset.Change, len(changes))
	for i, c := range changes {
		all[i] = ipset.Change{Set: c.set, Entry: entryOf(c.Entry, c.set), Delete: c.del}
	}
	err := ipset.Apply(all...)
	if err == nil {
		return nil
	}
	opens := map[string]ruleset.Set{}
	for _, s := range want.sets {
		if s.Opens {
			opens[s.Name] = s
		}
	}
	each, err := ipset.ApplyEach(all...) // makes all changes again, to find out which of them fail
	var closed []ipset.Change
	for _, r := range each {
		s, ok := opens[r.Set]
		if r.Delete || !ok {
			err = errors.Join(err, fmt.Errorf("change %s in ipset %s: %w", r.Entry, r.Set, r.Err))
			continue
		}
		refusal := ruleset.Refusal{Family: s.Family, Set: s.Name, Element: element(r.Entry)}
		refused[refusal] = because(fmt.Sprintf("%s in the set %s", refusal.Element, s.Name), r.Err)
		if _, ok := directionBit(r.Set); ok {
			closed = append(closed, ipset.Change{Set: r.Set, Entry: r.Entry, Delete: true})
		}
	}
	return errors.Join(err, ipset.Apply(closed...))
}

func element(e ipset.Entry) ruleset.Element {
	return ruleset.Element{Prefix: e.Prefix, Proto: ruleset.Protocol(e.Proto), Port: e.Port, Link: e.Link}
}

func because(what string, err error) string { return what + ": " + reason(err) }

func reason(err error) string {
	if said := (*restoreError)(nil); errors.As(err, &said) && said.said != "" {
		lines := strings.Split(said.said, "\n")
		tells := func(l string) bool { return strings.Contains(l, "fail") || strings.Contains(l, "load") }
		i := max(slices.IndexFunc(lines, tells), 0)
		return excerpt.Of(lineNumber.ReplaceAllString(strings.TrimSpace(lines[i]), "line"))
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return excerpt.Of(err.Error())
		}
		err = next
	}
}

func newRules(f conf.Family, have state, want *lowered) []ruleset.Rule {
	var rules []ruleset.Rule
	known := map[string]bool{}
	for _, c := range want.chains {
		if c.family != f || c.table != checks || slices.Equal(have.tables[f][checks].rules[c.name], c.lines) {
			continue
		}
		for _, r := range c.rules {
			if key := r.Key(); len(r.Policies) > 0 && !known[key] {
				known[key] = true
				rules = append(rules, r)
			}
		}
	}
	return rules
}

func (d *Driver) suspicious(f conf.Family, rules []ruleset.Rule) bool {
	if len(d.suspects) == 0 {
		return false
	}
	return slices.ContainsFunc(rules, func(r ruleset.Rule) bool {
		return d.suspects[ruleset.Refusal{Family: f, Rule: r.Key()}] ||
			slices.ContainsFunc(r.Kinds(), func(k ruleset.Kind) bool {
				return d.suspects[ruleset.Refusal{Family: f, Kind: k.Name}]
			})
	})
}

const (
	// trialTime limits the search for refused rules. When the time is over, all rules that no trial has accepted count
	// as refused.
	trialTime = 10 * time.Second
	// trialsEach limits the trials for the rules of one namespace. At the limit, every rule of a refused group counts as
	// refused.
	trialsEach = 64
	// maxSuspects limits the remembered refusals. If there are more, all of them are forgotten.
	maxSuspects = 1 << 15
)

// refusedAmong tries rules in a chain that no packet enters, and returns the rules that the kernel refuses. It returns
// nil if the kernel refuses even an empty chain.
func (d *Driver) refusedAmong(ctx context.Context, f conf.Family, rules []ruleset.Rule) ruleset.Refused {
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	if len(rules) == 0 || d.try(ctx, f, nil) != nil {
		return nil
	}
	t := trial{
		try:     func(rules []ruleset.Rule) error { return d.try(ctx, f, rules) },
		refused: ruleset.Refused{}, family: f,
	}
	t.kinds(rules)
	rules = slices.DeleteFunc(rules, func(r ruleset.Rule) bool {
		return slices.ContainsFunc(r.Kinds(), func(k ruleset.Kind) bool {
			return t.refused[ruleset.Refusal{Family: f, Kind: k.Name}] != ""
		})
	})
	t.namespaces(rules)
	if len(d.suspects) > maxSuspects {
		clear(d.suspects)
	}
	for r := range t.refused {
		d.suspects[r] = true
	}
	return t.refused
}

type trial struct {
	try     func([]ruleset.Rule) error
	family  conf.Family
	refused ruleset.Refused
}

func (t *trial) kinds(rules []ruleset.Rule) {
	byName := map[string]ruleset.Kind{}
	for _, r := range rules {
		for _, k := range r.Kinds() {
			if _, ok := byName[k.Name]; !ok {
				byName[k.Name] = k
			}
		}
	}
	bisect(slices.Sorted(maps.Keys(byName)), 0, func(names []string) error {
		examples := make([]ruleset.Rule, len(names))
		for i, name := range names {
			examples[i] = byName[name].Rule
		}
		return t.try(examples)
	}, func(name string, err error) {
		what := "rules with " + kindText(byName[name])
		t.refused[ruleset.Refusal{Family: t.family, Kind: name}] = because(what, err)
	})
}

// namespaces adds the refused rules to t.refused. It makes a limited number of trials for each namespace. If a
// namespace needs more trials, some of its good rules count as refused too.
func (t *trial) namespaces(rules []ruleset.Rule) {
	by := map[string][]ruleset.Rule{}
	for _, r := range rules {
		namespace, _, _ := strings.Cut(r.Policies[0], "/") // all policies of a rule are in one namespace
		by[namespace] = append(by[namespace], r)
	}
	bisect(slices.Sorted(maps.Keys(by)), 0, func(names []string) error {
		var all []ruleset.Rule
		for _, name := range names {
			all = append(all, by[name]...)
		}
		return t.try(all)
	}, func(name string, _ error) {
		bisect(by[name], trialsEach, t.try, func(r ruleset.Rule, err error) {
			t.refused[ruleset.Refusal{Family: t.family, Rule: r.Key()}] = because("the rule", err)
		})
	})
}

// bisect tries groups of items to find the items that the function try refuses even alone. For each of these items, it
// calls the function tell. trials limits the calls of the function try (0: no limit). At the limit, bisect calls the
// function tell for every item of the remaining refused groups.
func bisect[T any](items []T, trials int, try func([]T) error, tell func(T, error)) {
	type group struct {
		items []T
		err   error
	}
	var refused []group
	done := 0
	attempt := func(items []T) {
		if len(items) == 0 {
			return
		}
		done++
		if err := try(items); err != nil {
			refused = append(refused, group{items, err})
		}
	}
	attempt(items)
	for len(refused) > 0 {
		g := refused[0]
		refused = refused[1:]
		if n := len(g.items); n > 1 && (trials == 0 || done < trials) {
			attempt(g.items[:n/2])
			attempt(g.items[n/2:])
			continue
		}
		for _, item := range g.items {
			tell(item, g.err)
		}
	}
}

func (d *Driver) try(ctx context.Context, f conf.Family, rules []ruleset.Rule) error {
	var lines []string
	for _, r := range rules {
		lines = append(lines, lowerRule(r, f)...)
	}
	return d.tryLines(ctx, f, lines)
}

// tryLines returns an error if the kernel refuses the rules.
//
// Equivalent to:
//
//	iptables -t mangle -N WEIR-TRIAL; iptables -t mangle -A WEIR-TRIAL RULE…
//	iptables -t mangle -F WEIR-TRIAL; iptables -t mangle -X WEIR-TRIAL
func (d *Driver) tryLines(ctx context.Context, f conf.Family, lines []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var commands [len(conf.Families)]string
	commands[f] = tryCommands(checks, lines)
	return d.restore(ctx, commands)
}
