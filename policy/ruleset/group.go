package ruleset

import (
	"slices"
	"strconv"
)

type groups struct {
	rules []Rule // all rules of the chain, also those that can't be merged
	list  []*group
}

// group has rules of a chain that differ only in the set of their peers. The order of the group's rules doesn't matter.
type group struct {
	like    Rule // one of the rules, without the name of the peers' set
	peers   int  // index of the peers' set in like.Sets
	kind    SetKind
	run     int      // how many earlier rules have another action than Return; merges don't cross such rules
	rest    string   // result of restKey for each of the rules; groups that differ only in kind have the same rest
	rules   []int    // indexes of the group's rules in the chain
	sets    []string // peers' set of each rule
	numbers []uint16 // the rules' ports, if a merged set may have entries with these ports; otherwise nil
}

// groups puts the chain's rules into groups. Rules that can't be merged (see peersOf) are in no group.
func (b Bounds) groups(c Chain, sets map[string]*Set) groups {
	all := groups{rules: c.Rules}
	type groupKey struct {
		rest string
		kind SetKind
	}
	by := map[groupKey]*group{}
	run := 0
	var key []byte
	for i := range c.Rules {
		r := &c.Rules[i]
		if r.Action != Return {
			run++
			continue
		}
		peers := peersOf(r, c, sets)
		if peers < 0 {
			continue
		}
		var numbers []uint16
		if len(r.Sets) == 1 {
			numbers = b.numbers(r)
		}
		key = restKey(key[:0], run, r, peers, numbers)
		kind := sets[r.Sets[peers].Name].Kind
		g := by[groupKey{string(key), kind}]
		if g == nil {
			g = &group{like: *r, peers: peers, kind: kind, run: run, rest: string(key), numbers: numbers}
			g.like.Sets = slices.Clone(r.Sets)
			g.like.Sets[peers].Name, g.like.Comment, g.like.Policies = "", "", nil
			by[groupKey{g.rest, kind}] = g
			all.list = append(all.list, g)
		}
		g.rules, g.sets = append(g.rules, i), append(g.sets, r.Sets[peers].Name)
	}
	return all
}

// peersOf returns the index, in r.Sets, of the set that a merge may replace. It returns -1 if the rule can't be merged.
func peersOf(r *Rule, c Chain, sets map[string]*Set) int {
	if len(r.Policies) == 0 || r.Src.IsValid() || r.Dst.IsValid() || r.In != "" || r.Out != "" || r.InPort != "" ||
		r.Track != "" || r.Shape != "" {
		return -1
	}
	for i, m := range r.Sets {
		if m.Not || m.By != Source && m.By != Destination {
			continue
		}
		s := sets[m.Name]
		if s != nil && s.Role == Peers && s.Opens && s.Family == c.Family && (s.Kind == Addresses || s.Kind == Networks) {
			return i
		}
	}
	return -1
}

func restKey(key []byte, run int, r *Rule, peers int, numbers []uint16) []byte {
	number := func(n int) { key = append(strconv.AppendInt(key, int64(n), 10), ' ') }
	number(run)
	number(len(r.Proto))
	key = append(key, r.Proto...)
	number(len(numbers))
	key = append(key, portsOf(numbers)...)
	if numbers == nil {
		number(len(r.Ports))
		for _, p := range r.Ports {
			key = append(key, byte(p.First>>8), byte(p.First), byte(p.Last>>8), byte(p.Last))
		}
	}
	for i, m := range r.Sets {
		number(len(m.By))
		key = append(key, m.By...)
		if i == peers {
			number(-1)
			continue
		}
		number(len(m.Name))
		key = strconv.AppendBool(append(key, m.Name...), m.Not)
	}
	return key
}

func (b Bounds) numbers(r *Rule) (numbers []uint16) {
	if r.Proto != TCP && r.Proto != UDP && r.Proto != SCTP {
		return nil
	}
	for _, p := range r.Ports {
		if p.First == 0 || int(p.Last)-int(p.First) >= b.ListLen {
			return nil
		}
		for n := int(p.First); n <= int(p.Last); n++ {
			numbers = append(numbers, uint16(n))
		}
	}
	slices.Sort(numbers)
	if numbers = slices.Compact(numbers); len(numbers) > b.ListLen {
		return nil
	}
	return numbers
}
