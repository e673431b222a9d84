package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy/ruleset"
)

// Lacks tries what weir needs of iptables and ipset, with packets. It returns what the node lacks, with the kernel's
// words; nil if it lacks nothing.
func Lacks(ctx context.Context) (all []string) {
	flavour, err := Detect(ctx)
	if err != nil {
		return []string{err.Error()}
	}
	families := probe.Families()
	probe.Apart(func() {
		for _, f := range families {
			if len(all) == 0 { // both families lack the same, and the search for refused rules takes time
				all = lacksIn(ctx, flavour, f)
			}
		}
	})
	return all
}

func lacksIn(ctx context.Context, flavour Flavour, f conf.Family) []string {
	t, err := probe.New(f)
	if err != nil {
		return nil // the node has no addresses of the family
	}
	defer func() { _ = t.Close() }()
	sets, err := ipset.New()
	if err != nil {
		return []string{"ipset: " + err.Error()}
	}
	d := &Driver{Flavour: flavour, sets: sets, suspects: map[ruleset.Refusal]bool{}}
	defer d.Close()
	_ = d.once(ctx, f, noTrial) // an agent that was killed may have left it
	defer d.endTrial(ctx, t)
	lacks := d.makeTrialSets(t)
	if len(lacks) > 0 {
		return lacks
	}
	if err := d.once(ctx, f, trialCommands(t, f)); err != nil {
		return d.refusedNeeds(ctx, t, err)
	}
	wrong, err := t.Wrong()
	if err != nil {
		return nil // the kernel accepts all rules, and more can't be found out
	}
	for _, n := range wrong {
		lacks = append(lacks, fmt.Sprintf("%s (%s accepts them, and they have no effect)", n.Name, flavour.program(f)))
	}
	return lacks
}

// noTrial are the commands that remove a trial's chain.
const noTrial = "*" + checks + "\n:" + conf.TrialChain + " - [0:0]\n-D INPUT -i lo -j " + conf.TrialChain +
	"\n-X " + conf.TrialChain + "\nCOMMIT\n"

// masquerades are the commands that try weir's rule in the table nat, in a chain that no packet enters.
func masquerades(f conf.Family) string {
	rule := ruleText(ruleset.Rule{Action: ruleset.Masquerade}, f)
	return "*nat\n:" + conf.TrialChain + " - [0:0]\n-A " + conf.TrialChain + " " + rule + "\n-F " + conf.TrialChain +
		"\n-X " + conf.TrialChain + "\nCOMMIT\n"
}

// trialCommands are the commands that make the trial's chain and lead packets of the loopback link into it, followed
// by masquerades.
//
// Equivalent to: iptables -t mangle -N WEIR-TRIAL; iptables -t mangle -A WEIR-TRIAL RULE…; iptables -t mangle -I
// INPUT -i lo -j WEIR-TRIAL
func trialCommands(t *probe.Trial, f conf.Family) string {
	var b strings.Builder
	b.WriteString("*" + checks + "\n:" + conf.TrialChain + " - [0:0]\n")
	for _, r := range append(t.Rules(), unusedRules(f)...) {
		for _, line := range lowerRule(r, f) {
			fmt.Fprintf(&b, "-A %s %s\n", conf.TrialChain, line)
		}
	}
	b.WriteString("-I INPUT -i lo -j " + conf.TrialChain + "\nCOMMIT\n" + masquerades(f))
	return b.String()
}

// unusedRules are rules that only this backend needs. No packet of the trial matches them: the kernel must only
// accept them.
func unusedRules(f conf.Family) []ruleset.Rule {
	proto := [...]ruleset.Protocol{conf.IPv4: ruleset.ICMP, conf.IPv6: ruleset.ICMPv6}[f]
	all := []ruleset.Rule{
		{Shape: ruleset.ToItself, Action: ruleset.Return},
		{Proto: proto, Shape: ruleset.HonestICMP, Action: ruleset.Return},
		{Action: ruleset.Log, To: conf.LogPrefix + conf.TrialChain},
	}
	if f == conf.IPv6 {
		all = append(all, ruleset.Rule{Proto: proto, Shape: ruleset.Solicitation, Action: ruleset.Return})
	}
	for i := range all {
		all[i].In = "weir-none"
	}
	return all
}

func (d *Driver) makeTrialSets(t *probe.Trial) (lacks []string) {
	for _, s := range t.Sets {
		if err := d.sets.Create(headerOf(s)); err != nil {
			lacks = append(lacks, "ipset of the type "+setType(s.Kind)+": "+reason(err))
			continue
		}
		var changes []ipset.Change
		for e := range s.Entries.All() {
			changes = append(changes, ipset.Change{Set: s.Name, Entry: entryOf(e, s.Name)})
		}
		if err := ipset.Apply(changes...); err != nil {
			lacks = append(lacks, "entries of an ipset of the type "+setType(s.Kind)+": "+reason(err))
		}
	}
	return lacks
}

// searchTime bounds the search for refused rules, during which the agent doesn't do anything else at its start.
const searchTime = 3 * time.Second

// refusedNeeds tries the rules one by one, and returns those that are refused.
func (d *Driver) refusedNeeds(ctx context.Context, t *probe.Trial, all error) (lacks []string) {
	if err := d.try(ctx, t.Family, nil); err != nil { // not even a chain without rules
		return []string{d.Flavour.program(t.Family) + "-restore: " + reason(err)}
	}
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	for _, r := range append(t.Examples(), unusedRules(t.Family)...) {
		if ctx.Err() != nil {
			return append(lacks, "and perhaps more")
		}
		err := d.try(ctx, t.Family, []ruleset.Rule{r})
		if err == nil {
			continue
		}
		if len(r.Ports) > 0 { // a message must not change with the ports of the trial
			r.Ports = []ruleset.PortRange{{First: 1, Last: 1}}
		}
		words := fmt.Sprintf("%s rules like %s: %s", d.Flavour.program(t.Family),
			excerpt.Of(lowerRule(r, t.Family)[0]), reason(err))
		if !slices.Contains(lacks, words) {
			lacks = append(lacks, words)
		}
	}
	if err := d.once(ctx, t.Family, masquerades(t.Family)); err != nil {
		lacks = append(lacks, d.Flavour.program(t.Family)+" rules that masquerade: "+reason(err))
	}
	if len(lacks) == 0 {
		lacks = append(lacks, d.Flavour.program(t.Family)+": "+reason(all))
	}
	return lacks
}

func (d *Driver) endTrial(ctx context.Context, t *probe.Trial) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), searchTime) // also when the agent ends
	defer cancel()
	err := d.once(ctx, t.Family, noTrial)
	for _, s := range t.Sets {
		if err == nil || errors.As(err, new(*restoreError)) {
			_ = d.destroyUnused(ctx, s.Name)
		}
	}
}

func (d *Driver) once(ctx context.Context, f conf.Family, commands string) error {
	r, err := startRestorer(d.Flavour, f)
	if err != nil {
		return err
	}
	return r.carryOut(ctx, commands)
}
