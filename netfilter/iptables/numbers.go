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

// This file gives numbers to classes. For each direction, one set has all pods, each with the number of the pod's
// class. A rule writes this number into the packet's mark, and a tree of chains leads from the number to the class's
// chain. So a first packet needs one look-up for each direction, even with many classes (docs/architecture.md, decision
// 11).
//
// If all pods of a class move to a new class, the new class gets the old class's number. So a change of a policy
// usually changes only rules, and not the numbers of pods.

// The number of a class is in the bits markField of a packet's mark. Other programs may use all other bits.
const (
	markShift        = 16
	markField uint32 = 0x1fff << markShift
	toPod            = 1 << 12 // this bit is set for ingress
	maxNumber        = toPod - 1
	// openClass is the number of the class of pods that no policy isolates.
	openClass = 1
)

func markText(number, mask uint32) string {
	return fmt.Sprintf("0x%x/0x%x", number<<markShift, mask<<markShift)
}

const allBits = markField >> markShift

type dispatch struct {
	set    string // the set of numbered pods
	last   string // the chain that jumps to the dispatch chain, and then clears the mark
	prefix string // the beginning of the names that the method node gives to the tree's chains
	bit    uint32
}

var dispatches = map[string]dispatch{
	conf.IngressChain: {conf.IngressMap, conf.LastIngressChain, conf.IngressClassChains + conf.ByNumber, toPod},
	conf.EgressChain:  {conf.EgressMap, conf.LastEgressChain, conf.EgressClassChains + conf.ByNumber, 0},
}

// returns is the target that takes the place of a chain's name for the class of the pods that no policy isolates. This
// class has no chain: its packets return from the dispatch chain.
const returns = "RETURN"

// noneClass ends the names of the two chains for pods whose policies allow nothing: WEIR-IN-NONE and WEIR-EG-NONE. Both
// chains always exist.
var noneClass = strings.ToUpper(conf.NoneClass)

type class struct {
	set    string
	target string // the class's chain, or the constant returns
	rule   ruleset.Rule
	pods   ruleset.Entries
}

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

func leadsToClass(r ruleset.Rule, sets map[string]ruleset.Set) (s ruleset.Set, ok bool) {
	if len(r.Sets) == 1 && !r.Sets[0].Not {
		s, ok = sets[r.Sets[0].Name]
	}
	return s, ok
}

type leaves map[int]string

type numbering struct {
	leaves leaves
	of     map[string]int
	former map[int]bool
}

// formerComment is the comment of a rule for the number of a class that no longer exists.
const formerComment = "weir: by the number of a class that is gone"

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

type assignment struct {
	numbering
	was      *numbering
	members  ruleset.Entries
	classes  []class
	byNumber map[int][]ruleset.Element // the pods that have each number; nil until membersByNumber is called
	with     func(ruleset.Element) *class
	wanted   map[string]bool // names of the classes' chains
	next     map[int]string  // the chain that findSuccessor has found for each number
}

func (a *assignment) keep() {
	count := map[string]int{} // how many numbers each wanted chain has
	for _, c := range a.classes {
		count[c.target] = 0
	}
	// The variable same is true if the classes that had numbers are exactly the present classes. The variable single
	// is true if each of these classes had one number.
	same, single := true, true
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
	members := a.membersByNumber()
	// The numbers of classes that still exist come first, so that these classes keep their numbers.
	rank := func(n int) int {
		if target := a.successor(n); target != "" && target == a.was.leaves[n] {
			return 0
		}
		return 1
	}
	numbers := slices.SortedFunc(maps.Keys(members), func(x, y int) int { return cmp.Or(rank(x)-rank(y), x-y) })
	numbers = append(numbers, slices.Sorted(maps.Keys(a.was.leaves))...)
	for _, n := range numbers {
		target := a.successor(n)
		if n <= openClass || n > maxNumber || target == "" {
			continue
		}
		// If no pod has the number, and the number's class already has another number, the number is dropped. There
		// is one exception: if the classes are the same as before, the number of a former class stays. Otherwise
		// rules would change only because of this number.
		if len(members[n]) == 0 && a.of[target] != 0 && (!same || !a.was.former[n]) {
			continue
		}
		a.leaves[n] = target
		if a.of[target] == 0 {
			a.of[target] = n
		}
	}
}

func (a *assignment) membersByNumber() map[int][]ruleset.Element {
	if a.byNumber == nil {
		a.byNumber = map[int][]ruleset.Element{}
		for e := range a.members.All() {
			n, _ := splitNumber(e.Comment)
			a.byNumber[n] = append(a.byNumber[n], e.Element)
		}
	}
	return a.byNumber
}

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
	for _, e := range a.membersByNumber()[number] {
		switch c := a.with(e); {
		case c == nil: // the pod has ended or is closed
		case target != "" && target != c.target:
			return ""
		default:
			target = c.target
		}
	}
	return target
}

// free returns an unused number, or 0 if there is none. The search begins at a hash of the chain's name, so a class
// nearly always gets the same number again. This helps if another program restores old rules: these rules then lead
// pods to the right class.
func (a *assignment) free(target string) int {
	members := a.membersByNumber()
	const first, count = openClass + 1, maxNumber - openClass
	begin := uint32(0)
	if target != conf.IngressClassChains+noneClass && target != conf.EgressClassChains+noneClass {
		h := fnv.New32a()
		_, _ = h.Write([]byte(target)) // never fails
		begin = h.Sum32() % count
	}
	for i := range uint32(count) {
		n := first + int((begin+i)%count)
		if a.leaves[n] == "" && a.was.leaves[n] == "" && len(members[n]) == 0 {
			return n
		}
	}
	return 0
}

func classWith(e ruleset.Element, classes []class) *class {
	for i := range classes {
		if _, ok := classes[i].pods.Get(e); ok {
			return &classes[i]
		}
	}
	return nil
}

func finder(classes []class) func(ruleset.Element) *class {
	var by map[ruleset.Element]*class
	return func(e ruleset.Element) *class {
		if by == nil {
			by = map[ruleset.Element]*class{}
			for i := range slices.Backward(classes) { // backward, so that the first class with an element wins
				for pod := range classes[i].pods.All() {
					by[pod.Element] = &classes[i]
				}
			}
		}
		return by[e]
	}
}

func withNumber(number int, comment string) string { return strconv.Itoa(number) + " " + comment }

func splitNumber(text string) (number int, comment string) {
	head, comment, _ := strings.Cut(text, " ")
	number, _ = strconv.Atoi(head)
	return number, comment
}

// numberingOf reads the numbers of classes from the rules of the dispatch chain and of its tree. The names of the
// tree's chains don't matter, because another version of weir may have chosen them: numberingOf follows the rules that
// lead from chain to chain. A chain to which no rule leads is no part of the tree. If several rules are for one number,
// the first counts, as for packets.
func numberingOf(rules map[string][]string, chain string) *numbering {
	r := treeReader{rules: rules, read: map[step]bool{}, into: &numbering{leaves: leaves{}, former: map[int]bool{}}}
	r.follow(step{chain, dispatches[chain].bit, toPod})
	return r.into
}

type treeReader struct {
	rules map[string][]string
	read  map[step]bool // the steps followed so far; another program's rules may lead in a circle
	into  *numbering
}

// step is a rule that leads to a chain. A packet comes there only if its bits of the mask are those of the value.
type step struct {
	chain       string
	value, mask uint32
}

func (t *treeReader) follow(s step) {
	if t.read[s] {
		return
	}
	t.read[s] = true
	for _, l := range t.rules[s.chain] {
		value, mask, ok := markIn(l)
		if !ok || mask&s.mask != s.mask || value&s.mask != s.value { // for packets that don't come here
			continue
		}
		switch r, number := split(l), int(value&^toPod); {
		case mask == allBits && number != 0:
			if _, has := t.into.leaves[number]; !has {
				t.into.leaves[number], t.into.former[number] = r.target, strings.Contains(l, formerComment)
			}
		case r.goes && mask != allBits:
			t.follow(step{r.target, value, mask})
		}
	}
}

// markIn returns the value and the mask of a rule that begins with a condition about weir's bits of the mark. Bits of
// other programs make ok false.
func markIn(line string) (value, mask uint32, ok bool) {
	rest, ok := strings.CutPrefix(line, "-m mark --mark ")
	if !ok {
		return 0, 0, false
	}
	text, _, _ := strings.Cut(rest, " ")
	is, of, _ := strings.Cut(text, "/")
	v, err := strconv.ParseUint(is, 0, 32)
	m, errMask := strconv.ParseUint(of, 0, 32)
	if err != nil || errMask != nil || uint32(m)&^markField != 0 {
		return 0, 0, false
	}
	return uint32(v) >> markShift, uint32(m) >> markShift, true
}
