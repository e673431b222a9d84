package policy

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

type Limits limits

// LimitsOf returns limits that can be so low that random clusters exceed them. The parameters rules, sets and entries
// limit all policies of a node together. inSet limits the entries of one set. A policy whose size (see the function
// bulk) is more than inSet % 4 isn't parsed at once: it waits for a call of NextUnparsed.
func LimitsOf(rules, sets, entries float64, inSet int) Limits {
	return Limits{amount{rules, sets, entries}, inSet, inSet % 4}
}

func (l Limits) Compile(s State) ruleset.Ruleset { return limits(l).compile(s) }

func (e *Engine) SetLimits(l Limits) { e.compiler.limits = limits(l) }

const SliceWork, SmallWork = sliceWork, smallWork

func (e *Engine) SliceOf(work float64) ruleset.Ruleset {
	if u := e.NextUnparsed(); u != nil {
		u.Parse()
		e.TakeParsed(u)
	}
	return e.compile(work, false, nil)
}

func (e *Engine) SmallOf(work float64) ruleset.Ruleset { return e.compile(work, true, nil) }

const LooksPerWork, DividedPerWork = looksPerWork, dividedPerWork

func (e *Engine) Uncounted() int { return len(e.compiler.uncounted) }

// Undone returns how many addresses the engine has yet to compare with selectors of large sets, and on how many
// demands (rules with their sets) the running division of the node's capacity has yet to decide.
func (e *Engine) Undone() (addresses, demands int) {
	for _, l := range e.selectors.byKey {
		for f := range l.sets {
			addresses += len(l.sets[f].rest)
		}
	}
	if r := e.compiler.division.running; r != nil {
		for _, t := range r.all {
			demands += len(t.demands)
		}
	}
	return addresses, demands
}

type unsound []string

func (u *unsound) unless(ok bool, format string, args ...any) {
	if !ok {
		*u = append(*u, fmt.Sprintf(format, args...))
	}
}

// Unsound computes the engine's indexes and counters again, and returns a line for each difference.
func (e *Engine) Unsound() []string {
	var u unsound
	all, placed := map[*pod]bool{}, map[string]int{}
	for name, first := range e.pods.All() {
		for p := first; p != nil; p = p.next {
			if len(p.Addresses) > 0 && !p.HostNetwork {
				placed[p.NodeName]++
			}
			if u.unless((p.crowd != nil) == (!p.HostNetwork && len(p.addresses) > 0), "%v has no crowd", name); p.crowd != nil {
				all[p] = true
				u.unless(p.crowd.pods[p.place] == p && e.spaces[p.Namespace] == p.crowd.space, "%v is misplaced", name)
			}
		}
	}
	u.unless(maps.Equal(placed, e.placed), "the Nodes have %v pods, not %v", e.placed, placed)
	u.unless(len(e.moving.addresses)+len(e.moving.crowds)+len(e.unswept) == 0, "not settled")
	e.checkSpaces(&u, all)
	scopes, anchored, shared := map[*scope]int{}, map[anchor]int{}, map[*liveRequirement]int{}
	for _, l := range e.selectors.byKey {
		scopes[l.scope]++
		for _, r := range l.requirements {
			shared[r]++
		}
		for _, a := range l.anchor.anchors() {
			anchored[a]++
		}
		var count [len(conf.Families)]int
		print := uint64(0)
		for _, n := range e.spaces {
			for c := range n.each() {
				if _, in := slices.BinarySearchFunc(c.matches, l, byID); !in {
					continue
				}
				u.unless(l.scope.matches(n), "%s has a crowd out of its scope", l.selector)
				print ^= c.mark
				for f, n := range c.count {
					count[f] += n
				}
			}
		}
		u.unless(print == l.print, "%s has the print of other crowds", l.selector)
		for f, name := range l.names {
			s := e.compiler.supplies[name]
			u.unless(s == nil || !s.counted || s.size == l.count[f], "the compiler has another count of %s", l.selector)
			u.unless(!l.sets[f].filled || s != nil && s.inRules > 0, "%s has entries that nobody needs", l.selector)
		}
		u.unless(count == l.count, "%s has count %v, not %v", l.selector, l.count, count)
	}
	for s, n := range scopes {
		u.unless(s.selectors == n && e.selectors.scopes[s.key] == s, "scope %s has %d selectors", s.key, s.selectors)
	}
	u.unless(len(scopes) == len(e.selectors.scopes), "old scopes")
	for a, lives := range e.selectors.anchored {
		u.unless(len(lives) == anchored[a], "old selectors at %v", a)
	}
	for r, n := range shared {
		u.unless(r.selectors == n && e.selectors.requirements[r.text] == r, "%s has %d selectors", r.text, r.selectors)
	}
	u.unless(len(shared) == len(e.selectors.requirements), "old requirements")
	for _, sets := range e.selectors.byPort {
		for _, l := range sets.local {
			count := e.countPort(all, l.port)
			u.unless(count == l.count, "port %v has count %v, not %v", l.port, l.count, count)
		}
	}
	e.compiler.check(&u)
	for of := range e.reports.by {
		fresh := of.pod == nil || of.pod.fromWorkload || slices.Contains(e.given(of.pod.name()), of.pod.Pod)
		u.unless(fresh, "a report of an old pod")
		u.unless(!of.shared.IsValid() || len(e.addresses.more[of.shared]) > 1, "a report of an old address")
	}
	return u
}

func (e *Engine) checkSpaces(u *unsound, all map[*pod]bool) {
	ports := map[portKey]map[*crowd]int{}
	for name, s := range e.spaces {
		u.unless(s.object.Name != "" || len(s.crowds)+len(s.policies) > 0 || s.parsed != nil, "%s is empty", name)
		for _, policies := range s.policies {
			for _, p := range policies {
				u.unless(p.parsed == nil || e.isLocal(name), "%s has policies that nobody needs parsed", name)
			}
		}
		for c := range s.each() {
			var count [len(conf.Families)]int
			fresh := false
			for _, p := range c.pods {
				u.unless(all[p] && maps.Equal(p.Labels, c.sample.Labels), "%v is in a crowd of %s", p.name(), name)
				fresh = fresh || p.Pod == c.sample
				e.countPod(&count, p)
				for _, port := range p.Ports {
					key := portKey{port.Name, port.Proto}
					if ports[key] == nil {
						ports[key] = map[*crowd]int{}
					}
					ports[key][c]++
				}
			}
			for _, l := range c.matches {
				u.unless(e.selectors.byKey[l.key] == l, "a crowd of %s has an old selector", name)
			}
			u.unless(fresh, "a crowd of %s keeps an old pod", name)
			u.unless(count == c.count, "a crowd of %s has count %v, not %v", name, c.count, count)
		}
	}
	u.unless(reflect.DeepEqual(ports, e.selectors.crowds), "the crowds of ports are %v, not %v", e.selectors.crowds, ports)
}

func (c *compiler) check(u *unsound) {
	var wanted amount
	needs, inRules := map[*supply]int{}, map[*supply]int{}
	for _, p := range c.parts {
		wanted.rules += p.rules
		for _, s := range p.wants {
			needs[s]++
		}
		for _, s := range p.classified.supplies {
			inRules[s]++
		}
		u.unless(len(p.making) == 0, "namespace %s has sets without rules", p.namespace)
		compiled := !p.undecided && !p.changed && !p.regranted && !p.stale && len(p.pending) == 0
		u.unless(compiled, "namespace %s isn't compiled", p.namespace)
	}
	for s := range needs {
		wanted.sets++
		wanted.entries += s.entries
		u.unless(c.supplies[s.Name] == s && s.inRules == inRules[s], "set %s is out of place", s.Name)
		u.unless(c.uncounted[s] == !s.counted, "set %s is counted or isn't", s.Name)
	}
	u.unless(len(needs) == len(c.supplies), "old sets")
	u.unless(wanted == c.wanted, "the compiler's sum is %v, not %v", c.wanted, wanted)
	u.unless(len(c.unwanted) == 0, "sets to forget")
}

func (e *Engine) countPod(count *[len(conf.Families)]int, p *pod) {
	for _, a := range p.addresses {
		if p.local || e.addresses.taken[a] == 0 {
			count[conf.FamilyOf(a)]++
		}
	}
}

func (e *Engine) countPort(all map[*pod]bool, port namedPort) (count [len(conf.Families)]int) {
	for p := range all {
		has := func(o NamedPort) bool { return o.Name == port.name && o.Proto == port.proto }
		if (p.local || !port.local) && slices.ContainsFunc(p.Ports, has) {
			e.countPod(&count, p)
		}
	}
	return count
}

// Remains returns what an engine still has in memory when all objects are gone.
func (e *Engine) Remains() string {
	x, m := &e.selectors, &e.moving
	sizes := map[string]int{
		"pods": e.pods.Len(), "spaces": len(e.spaces), "names": e.names.Len(), "local": len(e.local),
		"unparsed": len(e.unparsed), "placed": len(e.placed),
		"parts": len(e.compiler.parts), "supplies": len(e.compiler.supplies),
		"endpoints": len(e.endpoints), "attached": len(e.attached), "expected": len(e.expected),
		"one": len(e.addresses.one), "more": len(e.addresses.more), "taken": len(e.addresses.taken),
		"selectors": len(x.byKey), "ports": len(x.byPort), "scopes": len(x.scopes), "open scopes": len(x.openScopes),
		"anchored": len(x.anchored), "port crowds": len(x.crowds), "reports": len(e.reports.by),
		"requirements": len(x.requirements),
		"moving":       len(m.addresses) + len(m.counts) + len(m.crowds) + len(m.sets),
	}
	maps.DeleteFunc(sizes, func(_ string, n int) bool { return n == 0 })
	if len(sizes) == 0 {
		return ""
	}
	return fmt.Sprint(sizes)
}
