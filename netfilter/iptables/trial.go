package iptables

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy/ruleset"
)

// trialClass is the number of the trial's only class.
const trialClass = openClass + 1

var trialDispatches = map[string]dispatch{
	probe.EgressChain:  {last: probe.EgressChain + "-LAST"},
	probe.IngressChain: {last: probe.IngressChain + "-LAST", bit: toPod},
}

// trialCommands returns the commands that make the trial's chains, and lead packets of the loopback link into these
// chains. If numbers is true, the entries of the trial's class sets have numbers of classes.
//
// Equivalent to: iptables -t mangle -N WEIR-TRIAL; iptables -t mangle -A WEIR-TRIAL RULE…; iptables -t mangle -I
// INPUT -i lo -j WEIR-TRIAL; iptables -t nat -N WEIR-TRIAL; iptables -t nat -A WEIR-TRIAL -p udp --dport PORT
// -j MASQUERADE --random-fully; iptables -t nat -I POSTROUTING -o lo -j WEIR-TRIAL
func trialCommands(t *probe.Trial, numbers bool) string {
	main := chain{name: conf.TrialChain}
	for _, r := range append(t.Rules(), unusedRules(t.Family)...) {
		if d, ok := trialDispatches[r.To]; ok && numbers {
			r.To = d.last
		}
		main.lines = append(main.lines, lowerRule(r, t.Family)...)
	}
	chains := []chain{main}
	for _, c := range t.Chains {
		if _, ok := trialDispatches[c.Name]; ok && numbers {
			chains = append(chains, trialDispatch(c)...)
			continue
		}
		at := chain{name: c.Name}
		for _, r := range c.Rules {
			at.lines = append(at.lines, lowerRule(r, t.Family)...)
		}
		chains = append(chains, at)
	}
	var heads, rules strings.Builder
	for _, c := range chains {
		heads.WriteString(":" + c.name + " - [0:0]\n")
		for _, line := range c.lines {
			fmt.Fprintf(&rules, "-A %s %s\n", c.name, line)
		}
	}
	return "*" + checks + "\n" + heads.String() + rules.String() + "-I INPUT " + trialJumps[checks] + "\nCOMMIT\n" +
		makeTrialChain("nat", masquerades(t)) + "-I POSTROUTING " + trialJumps["nat"] + "\nCOMMIT\n"
}

// trialDispatch lowers the chain like a real dispatch chain with one class.
func trialDispatch(c ruleset.Chain) []chain {
	d := trialDispatches[c.Name]
	d.set = strings.TrimSuffix(c.Rules[0].Sets[0].Name, "6")
	classes := []class{{set: c.Rules[0].Sets[0].Name, target: probe.ClassChain, rule: c.Rules[0]}}
	return lowerDispatch(d, c, classes, &numbering{
		leaves: leaves{openClass: returns, trialClass: probe.ClassChain},
		of:     map[string]int{returns: openClass, probe.ClassChain: trialClass},
	})
}

var trialJumps = map[string]string{
	checks: "-i lo -j " + conf.TrialChain, "nat": "-o lo -j " + conf.TrialChain,
}

// masquerades returns the rules that the trial has in the table nat.
func masquerades(t *probe.Trial) (lines []string) {
	for _, r := range t.Masquerades() {
		lines = append(lines, ruleText(r, t.Family))
	}
	return lines
}

// makeTrialChain returns commands that make the chain WEIR-TRIAL in the table. The caller must add the COMMIT.
func makeTrialChain(table string, lines []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n:%s - [0:0]\n", table, conf.TrialChain)
	for _, line := range lines {
		fmt.Fprintf(&b, "-A %s %s\n", conf.TrialChain, line)
	}
	return b.String()
}

// tryCommands returns commands that make a chain with the lines as its rules, and delete the chain again. No packet
// enters the chain. The commands are two transactions: in a single transaction, iptables-legacy would delete the
// rules before it passes them to the kernel.
func tryCommands(table string, lines []string) string {
	return makeTrialChain(table, lines) + "COMMIT\n" + makeTrialChain(table, nil) + "-X " + conf.TrialChain + "\nCOMMIT\n"
}

// unusedRules are rules that only the backend iptables needs. No packet of the trial matches these rules: the trial
// checks only that the kernel accepts them.
func unusedRules(f conf.Family) []ruleset.Rule {
	proto := [...]ruleset.Protocol{conf.IPv4: ruleset.ICMP, conf.IPv6: ruleset.ICMPv6}[f]
	all := []ruleset.Rule{
		{Proto: proto, Shape: ruleset.HonestICMP, Action: ruleset.Return},
		{Proto: proto, Shape: ruleset.NoICMPError, Action: ruleset.Return},
		{Action: ruleset.Log, To: conf.LogPrefix + conf.TrialChain},
	}
	if f == conf.IPv6 {
		all = append(all, ruleset.Rule{Proto: proto, Shape: ruleset.Solicitation, Action: ruleset.Return},
			ruleset.Rule{Proto: proto, Shape: ruleset.Advertisement, Action: ruleset.Return})
	}
	for i := range all {
		all[i].In = probe.NoLink
	}
	return all
}

// makeTrialSets makes the trial's sets. If the kernel supports marks in entries, the class sets have numbers of
// classes, and numbers is true.
func (d *Driver) makeTrialSets(t *probe.Trial) (lacks []string, numbers bool) {
	numbers = true
	for _, s := range t.Sets {
		h, isClass := headerOf(s), s.Role == ruleset.Members
		h.Marks = isClass && numbers
		err := d.sets.Create(h)
		if err != nil && h.Marks {
			numbers, h.Marks = false, false
			err = d.sets.Create(h)
		}
		if err != nil {
			lacks = append(lacks, "ipset of the type "+setType(s.Kind)+": "+reason(err))
			continue
		}
		var changes []ipset.Change
		for e := range s.Entries.All() {
			entry := entryOf(e, s.Name)
			if h.Marks {
				entry.Mark = ipset.Mark{Value: (trialDispatches[s.Dispatch].bit | trialClass) << markShift, Mask: markField}
			}
			changes = append(changes, ipset.Change{Set: s.Name, Entry: entry})
		}
		if err := ipset.Apply(changes...); err != nil {
			lacks = append(lacks, "entries of an ipset of the type "+setType(s.Kind)+": "+reason(err))
		}
	}
	return lacks, numbers
}

// removeTrial removes the chains of a trial, and the jumps to them.
//
// Equivalent to: iptables -t mangle -D INPUT -i lo -j WEIR-TRIAL; iptables -t mangle -F WEIR-TRIAL; iptables -t mangle
// -X WEIR-TRIAL; and the same for the trial's other chains, and for POSTROUTING of the table nat
func (d *Driver) removeTrial(ctx context.Context, f conf.Family) {
	for table, jump := range map[string]string{checks: "-D INPUT ", "nat": "-D POSTROUTING "} {
		chains, err := d.Flavour.trialChains(f, table)
		if err != nil || len(chains) == 0 {
			continue
		}
		var heads, ends string
		for _, name := range chains {
			heads, ends = heads+":"+name+" - [0:0]\n", ends+"-X "+name+"\n"
		}
		head, end := "*"+table+"\n"+heads, ends+"COMMIT\n"
		if d.once(ctx, f, head+jump+trialJumps[table]+"\n"+end) != nil {
			_ = d.once(ctx, f, head+end) // the jump may be missing, so this try leaves it out
		}
	}
}

func (f Flavour) trialChains(family conf.Family, table string) ([]string, error) {
	all, err := f.chains(family, table)
	return slices.DeleteFunc(all, func(name string) bool {
		return name != conf.TrialChain && !strings.HasPrefix(name, conf.TrialChain+"-")
	}), err
}
