package iptables

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

// This file has the numbers of classes. Where the kernel supports it, one set for each direction has the pods of all
// classes, each with its class's number. A rule writes the number into the packet's mark, and a tree of chains leads
// from the number to the class's chain. So a first packet takes one look-up, whatever the number of classes
// (docs/architecture.md, decision 11).
//
// A class keeps its number for as long as it exists. The number of a class that is gone goes to the class that has all
// of its pods now: a changed policy changes rules, and no pod's number. No other class gets a number that a pod in the
// kernel has, and hardly ever one that another class had before (see free).

// The bits of a packet's mark that have the number of a class. In all other bits weir leaves what others have written.
const (
	markShift = 16
	// markField has all of these bits.
	markField uint32 = 0x1fff << markShift
	// toPod is set in the numbers of ingress classes. So the number that the look-up of the sender has left is never
	// taken for the number of an ingress class.
	toPod = 1 << 12
	// maxNumber is the greatest number of a class, without toPod.
	maxNumber = toPod - 1
	// openClass is the number of the pods that no policy isolates.
	openClass = 1
)

// markText returns the number under a mask of the field's bits, as iptables and ipset print them.
func markText(number, mask uint32) string {
	return fmt.Sprintf("0x%x/0x%x", number<<markShift, mask<<markShift)
}

// allBits is the mask of a whole number.
const allBits = markField >> markShift

// dispatch has the differences between the two chains that send packets to classes.
type dispatch struct {
	set    string // the set of all pods with their numbers
	last   string // the chain that jumps to this one and then clears the mark
	prefix string // of the names of the tree's chains
	bit    uint32
}

// dispatches are the two chains, by name.
var dispatches = map[string]dispatch{
	conf.IngressChain: {conf.IngressMap, conf.LastIngressChain, conf.IngressClassChains + conf.ByNumber, toPod},
	conf.EgressChain:  {conf.EgressMap, conf.LastEgressChain, conf.EgressClassChains + conf.ByNumber, 0},
}

// returns is in place of a chain for the pods that no policy isolates: their packets leave the chain.
const returns = "RETURN"

// closedClass ends the names of the chains for pods whose policies let nothing through. These two classes always exist.
var closedClass = strings.ToUpper(conf.NoneClass)

// class is a class as the rule that leads to it describes it.
type class struct {
	set    string
	target string // the class's chain, or returns
	rule   ruleset.Rule
	pods   ruleset.Entries
}

// classesOf returns the classes that the chain's rules lead to, in the order of the rules. sets are the sets of the
// ruleset with the role Members, by name.
func classesOf(c ruleset.Chain, sets map[string]ruleset.Set) (classes []class) {
	for _, r := range c.Rules {
		if s, ok := leadsToClass(r, sets); ok {
			target := r.To
			if r.Action == ruleset.Return {
				target = returns
			}
			classes = append(classes, class{s.Name, target, r, s.Entries})
		}
	}
	return classes
}

// leadsToClass returns the class set that the rule looks the packet's pod up in. ok is false if it looks up something
// else, or nothing.
func leadsToClass(r ruleset.Rule, sets map[string]ruleset.Set) (s ruleset.Set, ok bool) {
	if len(r.Sets) == 1 && !r.Sets[0].Not {
		s, ok = sets[r.Sets[0].Name]
	}
	return s, ok
}

// leaves are the ends of a tree: for each number the class's chain, or returns.
type leaves map[int]string

// numbering has the numbers of one direction's classes in one family. It never changes.
type numbering struct {
	leaves leaves
	// of has the number that pods of a class get, by the class's chain.
	of map[string]int
	// former are further numbers, of classes that are gone. They lead to the class that had all of their pods then, and go
	// with a later change of rules.
	former map[int]bool
}

// formerComment is the comment of the rule for a former number.
const formerComment = "weir: by the number of a class that is gone"

// assign returns the numbers of the classes. was has the numbers that the kernel's rules have, and members the pods
// that the kernel has, with their numbers. ok is false if there are not enough numbers.
func assign(was *numbering, members ruleset.Entries, classes []class) (now *numbering, ok bool) {
	a := assignment{
		numbering: numbering{leaves{openClass: returns}, map[string]int{returns: openClass}, map[int]bool{}},
		was:       was, members: members, classes: classes, with: finder(classes), next: map[int]string{},
		wanted: map[string]bool{},
	}
	for _, c := range classes {
		a.wanted[c.target] = true
	}
	a.keep()
	for _, c := range slices.Backward(classes) {
		if a.of[c.target] != 0 {
			continue
		}
		n := a.free(c.target)
		if n == 0 {
			return nil, false
		}
		a.leaves[n], a.of[c.target] = c.target, n
	}
	for n, target := range a.leaves {
		if a.of[target] != n {
			a.former[n] = true
		}
	}
	return &a.numbering, true
}

// assignment is a numbering that is being made.
type assignment struct {
	numbering
	was     *numbering
	members ruleset.Entries
	classes []class
	held    map[int][]ruleset.Element // the members by number; nil if it isn't known yet
	with    func(ruleset.Element) *class
	wanted  map[string]bool // the chains of the classes
	next    map[int]string  // the results of successor
}

// keep takes over numbers that the kernel's rules and pods have.
func (a *assignment) keep() {
	count := map[string]int{} // how many numbers each wanted chain has
	for _, c := range a.classes {
		count[c.target] = 0
	}
	same, single := true, true // the same chains are wanted as before; each has one number
	for n, target := range a.was.leaves {
		_, ok := count[target]
		count[target]++
		same, single = same && ok, single && count[target] == 1 && (n == openClass) == (target == returns)
	}
	for _, c := range a.classes {
		same = same && count[c.target] > 0
	}
	if same && single {
		a.leaves = a.was.leaves
		for n, target := range a.was.leaves {
			a.of[target] = n
		}
		return
	}
	held := a.holders()
	// First come the numbers that pods have; of these first those that lead where they did.
	rank := func(n int) int {
		if target := a.successor(n); target != "" && target == a.was.leaves[n] {
			return 0
		}
		return 1
	}
	numbers := slices.SortedFunc(maps.Keys(held), func(x, y int) int { return cmp.Or(rank(x)-rank(y), x-y) })
	numbers = append(numbers, slices.Sorted(maps.Keys(a.was.leaves))...)
	for _, n := range numbers {
		target := a.successor(n)
		if n <= openClass || n > maxNumber || target == "" {
			continue
		}
		// A number that no pod needs goes with the next change of rules.
		if len(held[n]) == 0 && a.of[target] != 0 && (!same || !a.was.former[n]) {
			continue
		}
		a.leaves[n] = target
		if a.of[target] == 0 {
			a.of[target] = n
		}
	}
}

// holders returns the members by number.
func (a *assignment) holders() map[int][]ruleset.Element {
	if a.held == nil {
		a.held = map[int][]ruleset.Element{}
		for e := range a.members.All() {
			n, _ := unnumbered(e.Comment)
			a.held[n] = append(a.held[n], e.Element)
		}
	}
	return a.held
}

// successor returns the chain that the number leads to now: the same chain as before if it is still wanted. Otherwise
// it is the chain of the class that has all of the number's pods now; empty if there is no such class. If the rules
// with the number were flushed, it leads to the same class again.
func (a *assignment) successor(number int) string {
	target, ok := a.next[number]
	if !ok {
		target = a.findSuccessor(number)
		a.next[number] = target
	}
	return target
}

func (a *assignment) findSuccessor(number int) (target string) {
	if was := a.was.leaves[number]; a.wanted[was] {
		return was
	}
	for _, e := range a.holders()[number] {
		switch c := a.with(e); {
		case c == nil: // the pod has ended, or is closed
		case target != "" && target != c.target:
			return ""
		default:
			target = c.target
		}
	}
	return target
}

// free returns a number for the class that neither the rules nor a pod have; 0 if there is none. The search begins at a
// hash of the chain's name. So a class that comes again nearly always gets the number that it had, and no other class
// gets it meanwhile: rules that another program has saved and restores lead pods to their own class. The classes that
// always exist get the lowest number.
func (a *assignment) free(target string) int {
	held := a.holders()
	const first, count = openClass + 1, maxNumber - openClass
	begin := uint32(0)
	if target != conf.IngressClassChains+closedClass && target != conf.EgressClassChains+closedClass {
		h := fnv.New32a()
		_, _ = h.Write([]byte(target)) // never fails
		begin = h.Sum32() % count
	}
	for i := range uint32(count) {
		n := first + int((begin+i)%count)
		if a.leaves[n] == "" && a.was.leaves[n] == "" && len(held[n]) == 0 {
			return n
		}
	}
	return 0
}

// classWith returns the first of the classes that has the element; nil if none has it.
func classWith(e ruleset.Element, classes []class) *class {
	for i := range classes {
		if _, ok := classes[i].pods.Get(e); ok {
			return &classes[i]
		}
	}
	return nil
}

// finder returns a function that does what classWith does, but takes no longer if there are many classes. Its first
// call looks at all pods.
func finder(classes []class) func(ruleset.Element) *class {
	var by map[ruleset.Element]*class
	return func(e ruleset.Element) *class {
		if by == nil {
			by = map[ruleset.Element]*class{}
			for i := range slices.Backward(classes) { // of several classes with an element, the first one stays
				for pod := range classes[i].pods.All() {
					by[pod.Element] = &classes[i]
				}
			}
		}
		return by[e]
	}
}

// numbered returns the text that an entry of a set with numbers has in place of its comment.
func numbered(number int, comment string) string { return strconv.Itoa(number) + " " + comment }

// unnumbered returns the number and the comment. The number is 0 if there is none.
func unnumbered(text string) (number int, comment string) {
	head, comment, _ := strings.Cut(text, " ")
	number, _ = strconv.Atoi(head)
	return number, comment
}

// numberingOf reads the numbers of the dispatch chain's classes from a table's rules.
func numberingOf(rules map[string][]string, chain string) *numbering {
	d, all := dispatches[chain], &numbering{leaves: leaves{}, former: map[int]bool{}}
	for name, lines := range rules {
		if name != chain && !strings.HasPrefix(name, d.prefix) {
			continue
		}
		for _, l := range lines {
			if n, ok := numberIn(l); ok && n&toPod == d.bit && n != d.bit {
				number := int(n &^ toPod)
				all.leaves[number] = split(l).target
				all.former[number] = strings.Contains(l, formerComment)
			}
		}
	}
	return all
}

// numberIn returns the number that the rule compares the whole field of the mark with; false if the rule doesn't do so.
func numberIn(line string) (uint32, bool) {
	rest, ok := strings.CutPrefix(line, "-m mark --mark 0x")
	value, rest, _ := strings.Cut(rest, "/")
	mask, _, _ := strings.Cut(rest, " ")
	if !ok || mask != fmt.Sprintf("0x%x", markField) {
		return 0, false
	}
	number, err := strconv.ParseUint(value, 16, 32)
	return uint32(number) >> markShift, err == nil
}
