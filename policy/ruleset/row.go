package ruleset

import (
	"cmp"
	"slices"
)

type pivots struct {
	list   []pivot
	sorted bool // true if sorted by group and rule
}

type pivot struct{ group, rule int32 }

func (p *pivots) add(group, rule int32) { p.list = append(p.list, pivot{group, rule}) }

func (p *pivots) of(groups []int32) (rules []int32) {
	if !p.sorted {
		slices.SortFunc(p.list, func(a, b pivot) int {
			return cmp.Or(cmp.Compare(a.group, b.group), cmp.Compare(a.rule, b.rule))
		})
		p.sorted = true
	}
	rest := p.list
	for _, g := range groups {
		i, _ := slices.BinarySearchFunc(rest, g, func(p pivot, g int32) int { return cmp.Compare(p.group, g) })
		for rest = rest[i:]; len(rest) > 0 && rest[0].group == g; rest = rest[1:] {
			rules = append(rules, rest[0].rule)
		}
	}
	slices.Sort(rules)
	return rules
}

// row has the rules of a chain that may match packets from, or to, the addresses of one signature (addresses in the
// same sets and networks). The rules are in the chain's order. Rules for a larger network around these addresses are
// in the row above.
type row struct {
	above  *row
	rules  []int32
	one    [1]int32 // the array behind rules if rules has only one element
	byPort *[classes]*portTable
}

func (c *indexedChain) row(at end, s *signature) *row {
	if s == nil || len(c.pivots[at].list) == 0 {
		return nil
	}
	recent := &s.recent[(int(ends)*c.number+int(at))%len(s.recent)]
	if recent.chain == c && recent.end == at {
		return recent.row
	}
	r, ok := c.rows[at][s]
	if !ok {
		r = c.newRow(at, s)
	}
	recent.chain, recent.end, recent.row = c, at, r
	return r
}

// newRow makes the row for the signature, and stores it. If none of the signature's own groups (sets and networks)
// leads to a rule, newRow stores the row of the signature above, which belongs to a larger network.
func (c *indexedChain) newRow(at end, s *signature) *row {
	r := c.row(at, s.above)
	if rules := c.pivots[at].of(s.groups); len(rules) > 0 {
		r = &row{above: r, rules: rules}
		if len(rules) == 1 {
			r.one[0], r.rules = rules[0], r.one[:]
		}
	}
	if c.rows[at] == nil {
		c.rows[at] = map[*signature]*row{}
	}
	c.rows[at][s] = r
	return r
}

// few is how many rules, or groups, can be compared one by one in the time that a look-up takes.
const few = 8

func (r *row) candidates(c *indexedChain, q *query) []int32 {
	if len(r.rules) <= few {
		return r.rules
	}
	if r.byPort == nil {
		r.byPort = new([classes]*portTable)
	}
	t := r.byPort[q.class]
	if t == nil {
		t = newPortTable(c, r, q.class)
		r.byPort[q.class] = t
	}
	return t.at(q.Port)
}

type portTable struct {
	firsts []uint16 // first port of each span (range of ports), in order; the first span begins with 0
	rules  [][]int32
}

func (t *portTable) at(port uint16) []int32 {
	i, found := slices.BinarySearch(t.firsts, port)
	if !found {
		i--
	}
	return t.rules[i]
}

func newPortTable(c *indexedChain, r *row, of class) *portTable {
	var rules []portRule
	t := &portTable{firsts: []uint16{0}}
	for _, n := range r.rules {
		rule := &c.rules[n]
		if rule.class != anyClass && rule.class != of {
			continue
		}
		list, exact := rule.ranges()
		rules = append(rules, portRule{n, list, exact && rule.simple && rule.Action != Jump})
		for _, p := range list {
			t.firsts = append(t.firsts, p.First)
			if p.Last < lastPort {
				t.firsts = append(t.firsts, p.Last+1)
			}
		}
	}
	slices.Sort(t.firsts)
	t.firsts = slices.Compact(t.firsts)
	if !t.fill(rules) {
		t.firsts, t.rules = t.firsts[:1], make([][]int32, 1)
		for _, rule := range rules {
			t.rules[0] = append(t.rules[0], rule.number)
		}
	}
	return t
}

const lastPort = 1<<16 - 1

// ranges returns a list of ports that has all ports which the rule can match. exact is true if the rule's conditions
// on ports match each port in the list.
func (r *indexedRule) ranges() (list []PortRange, exact bool) {
	if len(r.Ports) > 0 {
		return r.Ports, len(r.ports) == 0
	}
	for _, m := range r.ports {
		if m.not {
			continue
		}
		if m.set == nil {
			return nil, true
		}
		for e := range m.set.Entries.All() {
			if n := len(list); n > 0 && list[n-1].Last+1 == e.Port {
				list[n-1].Last = e.Port
			} else {
				list = append(list, PortRange{e.Port, e.Port})
			}
		}
		return list, len(r.ports) == 1
	}
	return []PortRange{{0, lastPort}}, len(r.ports) == 0
}

type portRule struct {
	number  int32
	ports   []PortRange
	decides bool
}

// fill adds each rule to the spans (ranges of ports, see firsts) that have ports of the rule, except those spans whose
// earlier rules already decide. It returns false if the spans together would get too many rules (the variable room).
func (t *portTable) fill(rules []portRule) bool {
	t.rules = make([][]int32, len(t.firsts))
	// A span needs no more rules once it has a rule that decides on every packet to the span's ports. next[i] is i if
	// span i needs more rules. Otherwise next[i] is a later span that may need more rules.
	next := make([]int, len(t.firsts)+1)
	for i := range next {
		next[i] = i
	}
	open := func(i int) int { // returns the first span from i on that needs more rules
		for next[i] != i {
			next[i] = next[next[i]]
			i = next[i]
		}
		return i
	}
	room := 4*(len(rules)+len(t.firsts)) + few
	for _, rule := range rules {
		for _, p := range rule.ports {
			i, _ := slices.BinarySearch(t.firsts, p.First)
			for i = open(i); i < len(t.firsts) && t.firsts[i] <= p.Last; i = open(i + 1) {
				if room--; room < 0 {
					return false
				}
				if at := t.rules[i]; len(at) == 0 || at[len(at)-1] != rule.number { // a rule's ranges may overlap
					t.rules[i] = append(at, rule.number)
				}
				if rule.decides {
					next[i] = i + 1
				}
			}
		}
	}
	return true
}
