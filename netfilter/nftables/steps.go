package nftables

import (
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter/nftnl"
	"github.com/weir-net/weir/policy/ruleset"
)

// This file divides a change into transactions. A packet on its way meets the rules that existed when it met its first
// rule, but its look-ups find the newest elements. So during a transaction, a packet may meet the old class of its
// sender and the new class of its receiver, and pass although both states deny it. A look-up may also lead the packet
// to a new chain, in which it finds no rules.
//
// So each transaction does one of three things: it only denies packets that were allowed, it only allows packets that
// were denied, or it changes the result of at most one look-up of each packet. Each map is looked up once for a
// packet. A set of peers may be looked up twice: for the packet's source and for its destination. The chain of a new
// class is made before pods move to the class.
//
// In newer kernels, sets of networks change some microseconds after the rules and the other sets of their transaction
// (nft_rbtree_commit in the kernel's net/netfilter/nft_set_rbtree.c). During this time, a packet that meets the new
// rules finds the old elements of such a set, and a new set is empty. So a new set of networks is filled before packets
// meet rules that look it up, and a set of networks loses elements before rules change.

// step is a part of a change. The constants have the order in which the parts are carried out.
type step int

const (
	changesNetworks step = iota // makes new sets, and changes sets of networks; all denied packets stay denied
	makesNew                    // makes new sets, and new chains through which no packet goes yet
	allowsLess                  // may deny packets that were allowed; all denied packets stay denied
	movesPods                   // moves pods between two classes; each class allows something that the other one denies
	allowsMore                  // may allow packets that were denied; all allowed packets stay allowed
)

// change is a change of one family's table. It says in which step each element changes.
type change struct {
	have    kernelTable
	want    *table
	steps   map[string]map[ruleset.Element]step // by the name of the set
	rules   bool                                // true if rules of existing chains change
	unmet   bool                                // true if the table has no base chain yet: no packet meets its rules
	any     [allowsMore + 1]bool
	moving  []string // names of the maps in which pods move
	sets    bool     // true if sets change, and not only maps
	unready bool     // true if pods move to a new or changed chain
	// both has temporary chains for moving pods. Such a chain allows only packets that the old and the new class allow.
	// The key has the names of these two classes' chains, the old one first.
	both map[[2]string]chain
}

// statesOf returns the state of each family's table after each transaction, and the number of transactions.
func statesOf(have state, want lowered) (states [len(conf.Families)][]*table, count int) {
	count = 1
	for f, t := range want {
		if t != nil {
			states[f] = split(have[f], t)
			count = max(count, len(states[f]))
		}
	}
	return states, count
}

// nth returns the state of both families after transaction i. A family with fewer transactions stays at its last state.
func nth(states [len(conf.Families)][]*table, i int) (l lowered) {
	for f, all := range states {
		if len(all) > 0 {
			l[f] = all[min(i, len(all)-1)]
		}
	}
	return l
}

// split returns the state of the table after each transaction of the change. The last state is the wanted one.
func split(have kernelTable, want *table) []*table {
	if have.off || have.mustBeMadeAnew(want) || have.isOdd() {
		return []*table{want} // the rules or sets in the kernel are wrong, so one step may replace all of them
	}
	c := change{have: have, want: want, steps: map[string]map[ruleset.Element]step{}, both: map[[2]string]chain{}}
	c.unmet = !want.partial
	for _, k := range want.chains {
		had, ok := have.chains[k.Name]
		c.rules = c.rules || ok && !slices.Equal(had.Sums, k.written.Sums)
		c.unmet = c.unmet && (!ok || k.Hook == nil)
	}
	for _, s := range want.sets {
		if had, ok := have.sets[s.Name]; ok && !had.entries.Same(s.entries) {
			c.set(s, had)
		}
	}
	return c.states()
}

func (k kernelTable) isOdd() bool {
	for _, s := range k.sets {
		if s.odd {
			return true
		}
	}
	return false
}

func (c *change) set(s set, had kernelSet) {
	steps := map[ruleset.Element]step{}
	for d := range had.entries.Diff(s.entries) {
		at := allowsMore
		switch {
		case s.role == ruleset.Members && d.Had && d.Has:
			at = c.move(target(d.Was), target(d.Now))
		case s.role == ruleset.Attached && !d.Has:
			continue // strays (plan.strays) are not deleted
		case s.Layout == nftnl.Network && (s.role == ruleset.Checked || !d.Has && c.rules):
			at = changesNetworks // a Checked set of networks decides only about masquerading
		case s.role == ruleset.Attached, s.role == ruleset.Checked && d.Has, s.role != ruleset.Checked && !d.Has:
			at = allowsLess
		}
		if s.role == ruleset.Members && d.Has && at >= movesPods {
			c.unready = c.unready || !c.ready(target(d.Now))
		}
		c.any[at] = true
		if at == movesPods && !slices.Contains(c.moving, s.Name) {
			c.moving = append(c.moving, s.Name)
		}
		steps[d.Key] = at
	}
	if len(steps) > 0 {
		c.steps[s.Name] = steps
		c.sets = c.sets || s.role != ruleset.Members
	}
}

// move returns the step in which a pod moves from the chain of one class to the chain of another class. An empty name
// stands for no chain, which allows everything.
func (c *change) move(was, now string) step {
	_, known := c.have.chains[was]
	switch {
	case now == was || now == "" || within(c.have, c.want, was, now) && c.stays(was):
		return allowsMore // if now == was, only the entry's comment changes
	case was == "": // packets on their way may find no rules in a new chain and pass, as the old state allows
		return allowsLess
	case c.ready(now) && (!known || c.deniesAll(now)):
		return allowsLess
	case !known:
		return allowsMore
	}
	return movesPods
}

func (c *change) wanted(name string) (chain, bool) {
	i := slices.IndexFunc(c.want.chains, func(k chain) bool { return k.Name == name })
	if i < 0 {
		return chain{}, false
	}
	return c.want.chains[i], true
}

// ready reports whether the chain already has the wanted rules, so that packets on their way find these rules. It
// returns true for the empty name, which stands for no chain.
func (c *change) ready(name string) bool {
	had, ok := c.have.chains[name]
	k, _ := c.wanted(name)
	return name == "" || ok && slices.Equal(had.Sums, k.written.Sums)
}

// stays reports whether the chain keeps its rules until the last transaction.
func (c *change) stays(name string) bool {
	_, ok := c.wanted(name)
	return !ok || c.ready(name)
}

func (c *change) deniesAll(name string) bool {
	k, ok := c.wanted(name)
	return ok && k.written.Drops && !slices.ContainsFunc(k.rules, func(r rule) bool { return r.Action != ruleset.Drop })
}

func (c *change) states() (states []*table) {
	fills := slices.ContainsFunc(c.want.sets, c.isNewNetworks)
	if c.unmet {
		if fills || len(c.steps) > 0 {
			states = append(states, c.after(changesNetworks))
		}
		return append(states, c.want)
	}
	alone := len(c.steps) <= 1 && !c.sets || !c.any[movesPods] && (!c.any[allowsLess] || !c.any[allowsMore])
	alone = alone && (!c.rules || len(c.steps) == 0)
	slices.Sort(c.moving)
	first := 1 // the pods of the first map need no temporary chains: they move in a transaction of their own
	if c.rules {
		first = 0 // if rules also change, the pods of all maps need temporary chains
	}
	makes := alone && c.unready || !alone && len(c.moving) > first
	if fills && !makes || c.any[changesNetworks] {
		states = append(states, c.after(changesNetworks))
	}
	if makes && !alone {
		for _, name := range c.moving[first:] {
			c.stage(name)
		}
	}
	if makes {
		states = append(states, c.after(makesNew))
	}
	if alone {
		return append(states, c.want)
	}
	return append(states, c.after(allowsLess), c.after(movesPods), c.want)
}

// isNewNetworks reports whether the set is new, is a set of networks, and has entries.
func (c *change) isNewNetworks(s set) bool {
	_, ok := c.have.sets[s.Name]
	return !ok && s.Layout == nftnl.Network && s.entries.Len() > 0
}

// stage makes the temporary chains through which the map's pods move. Such a chain allows only packets that both
// classes allow.
func (c *change) stage(name string) {
	prefix := conf.IngressClassChains
	if name == c.want.family.Set(conf.EgressMap) {
		prefix = conf.EgressClassChains
	}
	s, _ := c.want.find(name)
	for d := range c.have.sets[name].entries.Diff(s.entries) {
		if c.steps[name][d.Key] == movesPods {
			c.through(prefix, target(d.Was), target(d.Now))
		}
	}
}

func (c *change) through(prefix, was, now string) {
	pair := [2]string{was, now}
	if _, ok := c.both[pair]; ok {
		return
	}
	k := chain{
		Chain: nftnl.Chain{
			Name: prefix + "BOTH-" + ruleset.Hash(was+" "+now), Comment: "weir: pods on their way to another class",
		},
		rules: []rule{
			{Rule: ruleset.Rule{Action: ruleset.Jump, To: was}}, {Rule: ruleset.Rule{Action: ruleset.GoTo, To: now}},
		},
	}
	k.sum(c.want.family)
	c.both[pair] = k
}

// after returns the state of the table after the step. Sets and chains that are only in the kernel stay.
func (c *change) after(last step) *table {
	t := &table{family: c.want.family, partial: true}
	for _, s := range c.want.sets {
		had, ok := c.have.sets[s.Name]
		switch {
		case c.unmet && s.Layout == nftnl.Network: // fills the set at once: no packet meets rules that look it up
		case ok:
			s.entries = c.entries(s, had, last)
		case last == changesNetworks && s.role == ruleset.Members:
			s.entries = ruleset.Entries{} // a new map's elements may lead to chains that are still missing
		}
		t.sets = append(t.sets, s)
	}
	if last == changesNetworks {
		return t
	}
	for _, k := range c.want.chains {
		// Packets meet the rules of a new base chain at once.
		if _, ok := c.have.chains[k.Name]; !ok && k.Hook == nil || last >= allowsLess {
			t.chains = append(t.chains, k)
		}
	}
	for _, k := range c.both {
		t.chains = append(t.chains, k)
	}
	return t
}

func (c *change) entries(s set, had kernelSet, last step) ruleset.Entries {
	all, steps := had.entries, c.steps[s.Name]
	if len(steps) == 0 {
		return all
	}
	for d := range had.entries.Diff(s.entries) {
		at, ok := steps[d.Key]
		k, staged := c.both[[2]string{target(d.Was), target(d.Now)}]
		switch staged = staged && at == movesPods && s.role == ruleset.Members; {
		case !ok || at > last && !staged, staged && last < allowsLess:
		case staged:
			_, words := verdictIn(d.Now)
			all = all.With(ruleset.Entry{Element: d.Key, Comment: withVerdict(k.Name, words)})
		case d.Has:
			all = all.With(ruleset.Entry{Element: d.Key, Comment: d.Now})
		default:
			all = all.Without(d.Key)
		}
	}
	return all
}
