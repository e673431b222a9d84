package ruleset

import "slices"

// chainPlan has the merges (rules that one rule with a merged set replaces) that a chain gets if there is room for all
// merged sets.
type chainPlan struct {
	chain   Chain
	sets    map[string]bool // names of all sets in the rules
	merges  []*merge
	staying []string // names of the sets in rules that aren't merged, without duplicates
	fit     bool
	merged  []Rule // the rules after all merges; nil until they are computed
}

func (b Bounds) plan(c Chain, sets []Set, refused Refused) *chainPlan {
	p := &chainPlan{chain: c, sets: map[string]bool{}, fit: true}
	for _, r := range c.Rules {
		for _, m := range r.Sets {
			p.sets[m.Name] = true
		}
	}
	if c.Hook == "" {
		own := make(map[string]*Set, len(p.sets))
		for name := range p.sets {
			if i, ok := find(sets, name); ok {
				own[name] = &sets[i]
			}
		}
		p.merges, p.fit = b.merges(b.groups(c, own), c.Family, own, refused)
	}
	replaced := make([]bool, len(c.Rules))
	for _, m := range p.merges {
		m.plan = p
		for _, i := range m.rules {
			replaced[i] = true
		}
	}
	staying := map[string]bool{}
	for i, r := range c.Rules {
		for _, m := range r.Sets {
			if !replaced[i] && !staying[m.Name] {
				staying[m.Name], p.staying = true, append(p.staying, m.Name)
			}
		}
	}
	return p
}

func (p *chainPlan) isFor(c Chain) bool {
	return p != nil && p.chain.Hook == c.Hook &&
		(shared(p.chain.Rules, c.Rules) || slices.EqualFunc(p.chain.Rules, c.Rules, Rule.Equal))
}

func (p *chainPlan) lookUp(sets map[string]bool) bool {
	for name := range sets {
		if p.sets[name] {
			return true
		}
	}
	return false
}

func (p *chainPlan) with(merges []*merge) []Rule {
	whole := len(merges) == len(p.merges)
	if whole && p.merged != nil {
		return p.merged
	}
	by := make([]*merge, len(p.chain.Rules))
	for _, m := range merges {
		for _, i := range m.rules {
			by[i] = m
		}
	}
	var all []Rule
	for i, r := range p.chain.Rules {
		switch m := by[i]; {
		case m == nil:
			all = append(all, r)
		case m.rules[0] == i:
			all = append(all, m.rule)
		}
	}
	if whole {
		p.merged = all
	}
	return all
}
