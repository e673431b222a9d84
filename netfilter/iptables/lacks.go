package iptables

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy/ruleset"
)

// Lacks makes rules, and sends test packets through them, to find out whether the node's iptables and ipset can do what
// weir needs (see package probe). It returns a sentence for each rule or type of set that the kernel refuses, or that
// has no effect. An error means that a thread couldn't leave the trial's network namespace (see probe.Apart). The
// sentences are right in this case too.
func Lacks(ctx context.Context) (all []string, err error) {
	flavour, missing := detectFlavour(ctx)
	if missing != nil {
		return []string{missing.Error()}, nil //nolint:nilerr // the error says what the node lacks
	}
	families := probe.Families()
	err = probe.Apart(func() {
		for _, f := range families {
			if len(all) == 0 { // usually both families lack the same features, and each search takes time
				all = lacksIn(ctx, flavour, f)
			}
		}
	})
	return all, err
}

func lacksIn(ctx context.Context, flavour Flavour, f conf.Family) []string {
	t := probe.New(f)
	defer func() { _ = t.Close() }()
	sets, err := ipset.New()
	if err != nil {
		return []string{"ipset: " + err.Error()}
	}
	d := newDriver(sets)
	d.Flavour = flavour
	defer d.Close()
	d.removeTrial(ctx, f) // removes what a killed agent may have left
	defer d.endTrial(ctx, t)
	lacks, numbers := d.makeTrialSets(t)
	if len(lacks) > 0 {
		return lacks
	}
	err = d.once(ctx, f, trialCommands(t, numbers))
	if err != nil && numbers { // weir also works without numbers in set entries
		err = d.once(ctx, f, trialCommands(t, false))
	}
	if err != nil {
		return d.refusedNeeds(ctx, t, err)
	}
	wrong, err := t.Wrong(func() { d.removeTrial(ctx, f) })
	if err != nil {
		// The packets prove nothing: they can't be sent, or other rules disturb them. But the kernel has accepted all
		// rules of the trial.
		return nil
	}
	for _, n := range wrong {
		lacks = append(lacks, fmt.Sprintf("%s (%s accepts them, and they have no effect)", n.Name, flavour.program(f)))
	}
	return lacks
}

// searchTime limits the search for refused rules, and then the removal of the trial. The starting agent waits for both.
const searchTime = 3 * time.Second

// refusedNeeds tries the trial's rules in groups, and returns a sentence for each rule that the kernel refuses. The
// parameter all is the kernel's error for all rules together.
func (d *Driver) refusedNeeds(ctx context.Context, t *probe.Trial, all error) (lacks []string) {
	if err := d.try(ctx, t.Family, nil); err != nil { // the kernel refuses even a chain without rules
		return []string{d.Flavour.program(t.Family) + "-restore: " + reason(err)}
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	rules := slices.DeleteFunc(append(t.Examples(), unusedRules(t.Family)...), func(r ruleset.Rule) bool {
		// Rules that lead to another chain are left out, because tryCommands doesn't make the other chain.
		return r.Action == ruleset.Jump || r.Action == ruleset.GoTo
	})
	why := make([]error, len(rules))
	numbers := make([]int, len(rules))
	for i := range numbers {
		numbers[i] = i
	}
	bisect(numbers, 0, func(some []int) error {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // rules that were not tried don't count as refused
		}
		var lines []string
		for _, i := range some {
			lines = append(lines, lowerRule(rules[i], t.Family)...)
		}
		err := d.once(ctx, t.Family, tryCommands(checks, lines))
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an error after the end of ctx says nothing about the rules
		}
		return err
	}, func(i int, err error) { why[i] = err })
	for i, r := range rules {
		if why[i] == nil {
			continue
		}
		if len(r.Ports) > 0 { // each trial has other ports, and the message should always be the same
			r.Ports = []ruleset.PortRange{{First: 1, Last: 1}}
		}
		words := fmt.Sprintf("%s rules like %s: %s", d.Flavour.program(t.Family),
			excerpt.Of(lowerRule(r, t.Family)[0]), reason(why[i]))
		if !slices.Contains(lacks, words) {
			lacks = append(lacks, words)
		}
	}
	if ctx.Err() != nil {
		return append(lacks, "and perhaps more")
	}
	if err := d.once(ctx, t.Family, tryCommands("nat", masquerades(t))); err != nil {
		lacks = append(lacks, d.Flavour.program(t.Family)+" rules that masquerade: "+reason(err))
	}
	if len(lacks) == 0 {
		lacks = append(lacks, d.Flavour.program(t.Family)+": "+reason(all))
	}
	return lacks
}

func (d *Driver) endTrial(ctx context.Context, t *probe.Trial) {
	// The trial is removed even if ctx has ended, which happens when the agent ends.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), searchTime)
	defer cancel()
	d.removeTrial(ctx, t.Family)
	for _, s := range t.Sets {
		_ = d.destroyUnused(ctx, s.Name) // if the set stays, the next trial uses it
	}
}

func (d *Driver) once(ctx context.Context, f conf.Family, commands string) error {
	r, err := startRestorer(d.Flavour, f, lockWait)
	if err != nil {
		return err
	}
	return r.carryOut(ctx, commands)
}
