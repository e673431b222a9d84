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

// make makes the set with its entries. If the kernel refuses it, or some of them, and nothing but what the set would
// let through rests on it, that is noted in refused; no set is made then that would be refused as a whole.
func (d *Driver) make(s ruleset.Set, refused ruleset.Refused) (*set, error) {
	header := ipset.Header{Name: s.Name, Type: setType(s.Kind), Family: s.Family}
	if err := d.sets.Create(header); err != nil {
		if !s.Opens {
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
	made := &set{s.Kind, s.Family, make(map[ruleset.Element]string, len(s.Entries))}
	changes := make([]change, len(s.Entries))
	for i, e := range s.Entries {
		changes[i] = change{set: s.Name, Entry: e}
		made.entries[e.Element] = e.Comment
	}
	err := changeSets(changes, &lowered{sets: []ruleset.Set{s}}, refused)
	for r := range refused {
		if r.Set == s.Name {
			delete(made.entries, r.Element)
		}
	}
	return made, err
}

// tryType says whether the kernel has sets of the type at all.
//
// Equivalent to: ipset create weir-trial TYPE && ipset destroy weir-trial
func (d *Driver) tryType(h ipset.Header) error {
	h.Name = conf.TrialSet
	if err := d.sets.Create(h); err != nil {
		return err
	}
	return d.sets.Destroy(h.Name)
}

// changeSets makes the changes. Entries that the kernel refuses are noted if nothing but what they would let through
// rests on them.
func changeSets(changes []change, want *lowered, refused ruleset.Refused) error {
	all := make([]ipset.Change, len(changes))
	for i, c := range changes {
		all[i] = ipset.Change{Set: c.set, Entry: entry(c.Entry), Delete: c.del}
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
	each, err := ipset.ApplyEach(all...) // to know which
	for _, r := range each {
		s, ok := opens[r.Set]
		if r.Delete || !ok {
			err = errors.Join(err, fmt.Errorf("change %s in ipset %s: %w", r.Entry, r.Set, r.Err))
			continue
		}
		refusal := ruleset.Refusal{Family: s.Family, Set: s.Name, Element: element(r.Entry)}
		refused[refusal] = because(fmt.Sprintf("%s in the set %s", refusal.Element, s.Name), r.Err)
	}
	return err
}

func element(e ipset.Entry) ruleset.Element {
	return ruleset.Element{Prefix: e.Prefix, Proto: ruleset.Protocol(e.Proto), Port: e.Port, Link: e.Link}
}

// because says what the kernel refuses and why, as a value of ruleset.Refused.
func because(what string, err error) string { return what + ": " + reason(err) }

// reason is what the kernel or the program has said, without what it was asked: it is the same each time.
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

// newRules returns the policies' rules of the chains that aren't there, or not so; of rules that do the same one.
func newRules(f conf.Family, have state, want *lowered) []ruleset.Rule {
	var rules []ruleset.Rule
	known := map[string]bool{}
	for _, c := range want.chains {
		if c.family != f || c.table != checks || slices.Equal(have.tables[f][checks].rules[c.name], c.lines) {
			continue
		}
		for _, r := range c.rules {
			if key := r.Key(); r.Policy != "" && !known[key] {
				known[key] = true
				rules = append(rules, r)
			}
		}
	}
	return rules
}

// suspicious says whether the kernel has refused one of the rules, or its kind, before.
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
	// trialTime bounds how long is looked for the rules that the kernel refuses. What isn't known by then is closed.
	trialTime = 10 * time.Second
	// trialsEach is how many trials one namespace's rules are worth.
	trialsEach = 64
	// maxSuspects is how many refused rules are remembered. A rule that was forgotten is tried after the change that it
	// fails.
	maxSuspects = 1 << 15
)

// refusedAmong finds out which of the rules the kernel refuses, in trials of a chain that no packet comes through:
// first which kinds of rules, of which there are some twenty at most; then, if there are others, whose, and which of
// theirs. It is none if the kernel refuses the chain without any rules too, or takes all of them: then the rules are at
// no fault.
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

// trial of rules.
type trial struct {
	try     func([]ruleset.Rule) error
	family  conf.Family
	refused ruleset.Refused
}

// kinds finds the kinds of the rules that the kernel refuses.
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

// namespaces finds the rules that the kernel refuses, in each namespace with a number of trials of its own. Where they
// don't suffice, more of that namespace's rules are taken for refused than are, and none of another's.
func (t *trial) namespaces(rules []ruleset.Rule) {
	by := map[string][]ruleset.Rule{}
	for _, r := range rules {
		namespace, _, _ := strings.Cut(r.Policy, "/")
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

// bisect tells of the items that try refuses alone. trials is how many there may be, 0 being without end; after that it
// tells of all that may be refused. It halves the largest group first, so that many items are soon known to be fine.
func bisect[T any](items []T, trials int, try func([]T) error, tell func(T, error)) {
	type group struct {
		items []T
		err   error
	}
	var refused []group // in the order of their size, the largest first
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

// try has the kernel take the rules and give them up again.
//
// Equivalent to: iptables -t mangle -N WEIR-TRIAL; iptables -t mangle -A WEIR-TRIAL RULE…; iptables -t mangle -F
// WEIR-TRIAL; iptables -t mangle -X WEIR-TRIAL
func (d *Driver) try(ctx context.Context, f conf.Family, rules []ruleset.Rule) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var b strings.Builder
	head := "*" + checks + "\n:" + conf.TrialChain + " - [0:0]\n"
	b.WriteString(head)
	for _, r := range rules {
		for _, l := range lowerRule(r, f) {
			fmt.Fprintf(&b, "-A %s %s\n", conf.TrialChain, l)
		}
	}
	b.WriteString("COMMIT\n")
	var commands [len(conf.Families)]string
	commands[f] = b.String()
	if err := d.restore(ctx, commands); err != nil {
		return err
	}
	commands[f] = head + "-X " + conf.TrialChain + "\nCOMMIT\n"
	return d.restore(ctx, commands)
}
