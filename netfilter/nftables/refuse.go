package nftables

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// refusedParts returns the refused parts that the next ruleset may leave out: without these parts, the ruleset allows
// less, and never more. someElement is true if the kernel refused elements of a set that opens (ruleset.Set.Opens), and
// didn't name them.
func (l lowered) refusedParts(refused *nftnl.RefusedError) (parts ruleset.Refused, someElement bool) {
	parts = ruleset.Refused{}
	missing := map[key]bool{} // the refused sets; the kernel therefore also refuses good rules that use them
	for _, r := range refused.Refusals {
		if about, ok := r.About.(aSet); ok && about.set.opens {
			missing[key{about.family, about.set.Name}] = true
			why := fmt.Sprintf("the set %s: %s", about.set.Name, r.Err)
			if about.set.listOfPorts {
				l.rulesWith(about, why, parts)
			} else if about.set.role == ruleset.Peers {
				parts[ruleset.Refusal{Family: about.family, Set: about.set.Name}] = why
			}
		}
	}
	for _, r := range refused.Refusals {
		switch about := r.About.(type) {
		case elements:
			someElement = someElement || about.set.opens
		case nftnl.ElementOf:
			if of := about.About.(elements); of.set.opens {
				e := entryOf(of.set.Layout, about.Element).Element
				refusal := ruleset.Refusal{Family: of.family, Set: of.set.Name, Element: e}
				for _, c := range of.set.classes { // an element of a map stands for an entry of a class set
					if _, ok := c.pods.Get(e); ok {
						refusal.Set = c.set
						break
					}
				}
				parts[refusal] = fmt.Sprintf("%s in the set %s: %s", e, of.set.Name, r.Err)
			}
		case aRule:
			if about.allows() && !about.uses(missing) {
				parts[about.refusal()] = fmt.Sprintf("the rule: %s", r.Err)
			}
		}
	}
	return parts, someElement
}

// lacks says which expressions the kernel refuses. It has only expressions that weir's rules can do without.
type lacks struct {
	ports bool // true if the kernel refuses the match of bridge ports (xt_physdev)
	logs  bool // true if the kernel refuses to copy packets to a log group (nfnetlink_log)
}

// without is the method that is called when the kernel has refused rules. If the kernel lacks an expression that
// weir's rules can do without, the method returns true, and from then on m leaves this expression out of rules. The
// kernel may have refused the rules for another reason, so the method tries the expression alone.
func (m *lowering) without(refused *nftnl.RefusedError) bool {
	any := func(of func(rule) bool) bool {
		return slices.ContainsFunc(refused.Refusals, func(r nftnl.Refusal) bool {
			about, ok := r.About.(aRule)
			return ok && of(about.rule)
		})
	}
	now := m.lacks
	if !now.ports && any(rule.byPort) {
		now.ports = refuses(nftnl.Expressions{}.InPort(conf.Bridge))
	}
	if !now.logs && any(rule.logs) {
		now.logs = refuses(nftnl.Expressions{}.Log(conf.LogGroup, conf.LogPrefix))
	}
	if now == m.lacks {
		return false
	}
	*m = lowering{lacks: now}
	return true
}

// refuses reports whether the kernel refuses a rule with the expressions. It tries the rule in a table without hooks,
// which the same transaction deletes.
//
// Equivalent to: nft 'add table ip weir-refused; add chain ip weir-refused c; add rule ip weir-refused c EXPRESSIONS;
// delete table ip weir-refused'
func refuses(e nftnl.Expressions) bool {
	t := nftnl.Table{Family: unix.NFPROTO_IPV4, Name: tableName + "-refused"}
	var b nftnl.Batch
	b.AddTable(t, nftnl.WeirTableComment)
	b.AddChain(t, nftnl.Chain{Name: "c"})
	b.AddRule(t, "c", nftnl.Rule{Expressions: e}, nil)
	b.DeleteTable(t)
	return errors.As(b.Commit(), new(*nftnl.RefusedError))
}

func (r rule) logs() bool { return r.Log != "" || r.Action == ruleset.Log }

func (l lacks) notes() (all []netfilter.Note) {
	add := func(message string) {
		all = append(all, netfilter.Note{About: "kernel", Message: message + "; then restart the agent"})
	}
	if l.ports {
		add("nftables refuses to match ports of bridges, so ICMP packets of pods behind another plugin's bridge, and all " +
			"link-local IPv6 packets on that bridge, are dropped: modprobe nft_compat xt_physdev")
	}
	if l.logs {
		add("nftables refuses to log, so policies are enforced, but no dropped packet is reported: " +
			"modprobe nft_log nfnetlink_log")
	}
	return all
}

func (r aRule) allows() bool { return r.rule.from != nil && len(r.rule.from.Policies) > 0 }

func (r aRule) refusal() ruleset.Refusal {
	return ruleset.Refusal{Family: r.family, Rule: r.rule.from.Key()}
}

func (r aRule) uses(sets map[key]bool) bool {
	for _, m := range r.rule.Sets {
		if sets[key{r.family, m.Name}] {
			return true
		}
	}
	return false
}

func (l lowered) rulesWith(ports aSet, why string, parts ruleset.Refused) {
	only := map[key]bool{{ports.family, ports.set.Name}: true}
	for _, f := range conf.Families {
		if f != ports.family || l[f] == nil {
			continue
		}
		for _, c := range l[f].chains {
			for _, r := range c.rules {
				if one := (aRule{f, r}); one.allows() && one.uses(only) {
					parts[one.refusal()] = why
				}
			}
		}
	}
}
