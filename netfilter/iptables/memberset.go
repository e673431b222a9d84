package iptables

import (
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
)

type loweredMembers struct {
	numbers *numbering
	classes map[string]ruleset.Entries // entries by the name of the class set
	to      ruleset.Entries
}

func (m *lowering) memberSet(last lowering, c ruleset.Chain, classes []class, n *numbering) ruleset.Set {
	name := c.Family.Set(dispatches[c.Name].set)
	done := last.members[name].next(classes, n)
	m.members[name] = done
	return ruleset.Set{
		Name: name, Kind: numberedPods, Family: c.Family, Role: ruleset.Members, Dispatch: c.Name, Opens: true,
		Entries: done.to,
	}
}

func (s loweredMembers) next(classes []class, n *numbering) loweredMembers {
	now := loweredMembers{n, make(map[string]ruleset.Entries, len(classes)), s.to}
	var changed []ruleset.Element
	for _, c := range classes {
		now.classes[c.set] = c.pods
		was := s.classes[c.set]
		if s.numbers != n && (s.numbers == nil || s.numbers.of[c.target] != n.of[c.target]) {
			for e := range was.All() {
				changed = append(changed, e.Element)
			}
			was = ruleset.Entries{}
		}
		for d := range was.Diff(c.pods) {
			changed = append(changed, d.Key)
		}
	}
	for name, was := range s.classes {
		if _, ok := now.classes[name]; !ok {
			for e := range was.All() {
				changed = append(changed, e.Element)
			}
		}
	}
	const few = 4
	with := func(e ruleset.Element) *class { return classWith(e, classes) }
	if len(changed) > few {
		with = finder(classes)
	}
	for _, e := range changed {
		if c := with(e); c == nil {
			now.to = now.to.Without(e)
		} else {
			comment, _ := c.pods.Get(e)
			now.to = now.to.With(ruleset.Entry{Element: e, Comment: withNumber(n.of[c.target], conf.Comment(comment))})
		}
	}
	return now
}

func entryOf(e ruleset.Entry, set string) ipset.Entry {
	all := ipset.Entry{Prefix: e.Prefix, Proto: string(e.Proto), Port: e.Port, Link: e.Link, Comment: e.Comment}
	if bit, ok := directionBit(set); ok && e.Comment != "" {
		var number int
		number, all.Comment = splitNumber(e.Comment)
		all.Mark = ipset.Mark{Value: (bit | uint32(number)) << markShift, Mask: markField}
	}
	return all
}

func commentOf(e ipset.Entry, set string) string {
	bit, ok := directionBit(set)
	if !ok {
		return e.Comment
	}
	value, foreign := e.Mark.Value>>markShift, e.Mark.Value&^markField
	// If weir has not written the mark, the entry gets a number that no class has.
	if e.Mark.Mask != markField || foreign != 0 || value&toPod != bit {
		return withNumber(0, e.Comment)
	}
	return withNumber(int(value&^toPod), e.Comment)
}

func isComment(text string, e ipset.Entry, comment []byte, set string) bool {
	if _, ok := directionBit(set); !ok {
		return text == string(comment)
	}
	e.Comment = string(comment)
	return text == commentOf(e, set)
}

// Sets returns the sets that the driver makes in the kernel for the ruleset. It doesn't read the kernel.
func (d *Driver) Sets(r ruleset.Ruleset) (all []netfilter.KernelSet) {
	byNumber := func(s ruleset.Set) bool { return s.Role == ruleset.Members && d.byNumber[s.Family].Load() }
	for _, s := range r.Sets {
		if byNumber(s) {
			all = netfilter.AddClass(all, s.Family.Set(dispatches[s.Dispatch].set), setType(ruleset.Addresses), s)
		}
	}
	for _, s := range r.Sets {
		if byNumber(s) {
			continue
		}
		for _, s := range partsOf(s) {
			n := s.Entries.Len()
			if hasAll(s) {
				n = loweredSet{}.next(s).to.Len()
			}
			all = append(all, netfilter.KernelSet{Name: s.Name, Type: setType(s.Kind), Entries: n})
		}
	}
	return all
}

func directionBit(set string) (bit uint32, ok bool) {
	// This check saves time: the function is called for each entry, and nearly every set has a longer name.
	if len(set) > len(conf.IngressMap)+1 {
		return 0, false
	}
	for _, d := range dispatches {
		if d.set == strings.TrimSuffix(set, "6") {
			return d.bit, true
		}
	}
	return 0, false
}
