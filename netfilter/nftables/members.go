package nftables

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/netfilter/probe"
	"github.com/weir-net/weir/policy/ruleset"
)

type class struct {
	set    string
	target string // "" for pods that no policy isolates
	pods   ruleset.Entries
}

func isToClass(r ruleset.Rule, sets map[string]bool) bool {
	return len(r.Sets) == 1 && !r.Sets[0].Not && sets[r.Sets[0].Name]
}

func classesOf(c ruleset.Chain, sets map[key]ruleset.Set) (all []class) {
	for _, r := range c.Rules {
		if len(r.Sets) != 1 || r.Sets[0].Not {
			continue
		}
		if s, ok := sets[key{c.Family, r.Sets[0].Name}]; ok && s.Dispatch == c.Name {
			all = append(all, class{s.Name, r.To, s.Entries})
		}
	}
	return all
}

func nameOf(classes []class) string {
	var b strings.Builder
	for _, c := range classes {
		b.WriteString(c.set + " ")
	}
	return b.String()
}

func mapOf(chain string) string {
	if chain == conf.EgressChain || chain == probe.EgressChain {
		return conf.EgressMap
	}
	return conf.IngressMap
}

func withVerdict(target, comment string) string { return target + " " + comment }

func verdictIn(value string) (v nftnl.Verdict, comment string) {
	target, comment, _ := strings.Cut(value, " ")
	if target == "" {
		return nftnl.Verdict{Code: unix.NFT_RETURN}, comment
	}
	return nftnl.Verdict{Code: unix.NFT_GOTO, Chain: target}, comment
}

func valueOf(v nftnl.Verdict, comment string) string {
	switch v.Code {
	case unix.NFT_RETURN:
		return withVerdict("", comment)
	case unix.NFT_GOTO:
		return withVerdict(v.Chain, comment)
	}
	return withVerdict("?", comment)
}

type loweredMap struct {
	classes map[string]class
	to      ruleset.Entries
}

func (m *lowering) verdicts(last lowering, c ruleset.Chain, classes []class) set {
	name := c.Family.Set(mapOf(c.Name))
	done := last.maps[key{c.Family, name}].next(classes)
	m.maps[key{c.Family, name}] = done
	return set{
		Set:  nftnl.Set{Name: name, Layout: nftnl.Verdicts, Comment: mapComments[mapOf(c.Name)]},
		kind: ruleset.Addresses, role: ruleset.Members, opens: true, entries: done.to, classes: classes,
	}
}

var mapComments = map[string]string{
	conf.EgressMap:  "weir: where each pod's own packets are checked; return: nowhere, no policy isolates it",
	conf.IngressMap: "weir: where packets to each pod are checked; return: nowhere, no policy isolates it",
}

func (m loweredMap) next(classes []class) loweredMap {
	now := loweredMap{make(map[string]class, len(classes)), m.to}
	var changed []ruleset.Element
	for _, c := range classes {
		now.classes[c.set] = c
		was := m.classes[c.set]
		if was.target != c.target {
			for e := range was.pods.All() {
				changed = append(changed, e.Element)
			}
			was.pods = ruleset.Entries{}
		}
		for d := range was.pods.Diff(c.pods) {
			changed = append(changed, d.Key)
		}
	}
	for name, was := range m.classes {
		if _, ok := now.classes[name]; !ok {
			for e := range was.pods.All() {
				changed = append(changed, e.Element)
			}
		}
	}
	for _, e := range changed {
		now.to = now.to.Without(e)
		for _, c := range classes { // the first set with the pod decides, as in the ruleset
			if words, ok := c.pods.Get(e); ok {
				now.to = now.to.With(ruleset.Entry{Element: e, Comment: withVerdict(c.target, comment(words))})
				break
			}
		}
	}
	return now
}
