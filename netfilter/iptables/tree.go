package iptables

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy/ruleset"
)

const clearMark = "-j MARK --set-xmark 0x0/0x1fff0000"

// clears returns the rule that clears weir's bits in the mark before the look-up of a number. Without this rule, bits
// of another program would count as a number if the set doesn't have the address.
//
// Equivalent to, for egress:
//
//	iptables -t mangle -A WEIR-EGRESS -m mark ! --mark 0x0/0x1fff0000 -j MARK --set-xmark 0x0/0x1fff0000
//
// For ingress, the rule matches only packets whose mark has the bit of ingress (toPod).
func (d dispatch) clears() string {
	if d.bit == 0 {
		return "-m mark ! --mark " + markText(0, allBits) + " " + clearMark
	}
	return "-m mark --mark " + markText(d.bit, d.bit) + " " + clearMark
}

// lowerDispatch returns three kinds of chains: the dispatch chain, which looks up the number of the pod's class; the
// chain that jumps to the dispatch chain and then clears the mark; and the chains of the tree.
//
// Number 1 is the number of the pods that no policy isolates. Its rule comes first. The order of the numbers has no
// effect, because a packet has only one number. With three classes, the rules that follow the one from the method
// clears are equivalent to:
//
//	iptables -t mangle -A WEIR-EGRESS -j SET --map-set weir-eg src --map-mark
//	iptables -t mangle -A WEIR-EGRESS -m mark --mark 0x10000/0x1fff0000 -j RETURN
//	iptables -t mangle -A WEIR-EGRESS -m mark --mark 0x20000/0x1fff0000 -g WEIR-EG-NONE
//	iptables -t mangle -A WEIR-EGRESS -m mark --mark 0x30000/0x1fff0000 -g WEIR-EG-HASH
func lowerDispatch(d dispatch, c ruleset.Chain, classes []class, n *numbering) []chain {
	rules := map[string]ruleset.Rule{}
	sets := map[string]bool{}
	for _, k := range classes {
		rules[k.target], sets[k.set] = k.rule, true
	}
	top := chain{family: c.Family, table: checks, name: c.Name, rules: c.Rules}
	t := tree{dispatch: d, top: c.Name, family: c.Family, numbering: n, rules: rules}
	var by ruleset.Part
	for _, r := range c.Rules {
		switch leads := len(r.Sets) == 1 && !r.Sets[0].Not && sets[r.Sets[0].Name]; {
		case leads:
			by = r.Sets[0].By
		case by == "":
			top.lines = append(top.lines, lowerRule(r, c.Family)...)
		default:
			t.rest = append(t.rest, lowerRule(r, c.Family)...)
		}
	}
	if by != "" {
		top.lines = append(top.lines, d.clears(),
			"-j SET --map-set "+c.Family.Set(d.set)+" "+flags[by]+" --map-mark", t.leaf(openClass))
		numbers := slices.DeleteFunc(slices.Sorted(maps.Keys(n.leaves)), func(n int) bool { return n == openClass })
		top.lines = append(top.lines, t.lines(numbers, numberBits)...)
	}
	top.lines = append(top.lines, t.rest...)
	last := chain{family: c.Family, table: checks, name: d.last, lines: []string{"-j " + c.Name, clearMark}}
	return append([]chain{top, last}, t.chains...)
}

// tree makes the chains that lead from a number to the chain of its class. Each chain divides its numbers by the next
// pair of bits in which they differ. A chain with few numbers leads to the classes directly.
type tree struct {
	dispatch
	*numbering
	top    string // the dispatch chain's name
	family conf.Family
	rules  map[string]ruleset.Rule // the ruleset's rules that lead to classes, by the classes' chains
	rest   []string                // lines of the dispatch chain for pods in no class
	chains []chain
}

const (
	numberBits = 12
	digit      = 2
	few        = 4
)

// lines returns the rules that lead to the classes with these numbers. The numbers are sorted, and differ only in the
// bits below shift.
func (t *tree) lines(numbers []int, shift int) (lines []string) {
	if len(numbers) <= few {
		for _, n := range numbers {
			lines = append(lines, t.leaf(n))
		}
		return lines
	}
	lowest, highest := numbers[0], numbers[len(numbers)-1]
	for shift -= digit; lowest>>shift == highest>>shift; {
		shift -= digit
	}
	for first := highest >> shift; first > lowest>>shift; first-- {
		from, _ := slices.BinarySearch(numbers, first<<shift)
		switch some := numbers[from:]; len(some) {
		case 0:
		case 1:
			lines = append(lines, t.leaf(some[0]))
		default:
			lines = append(lines, t.node(some, first, shift))
		}
		numbers = numbers[:from]
	}
	return append(lines, t.lines(numbers, shift)...)
}

// node makes a chain for the numbers n with n>>shift == first. It returns the rule that leads to this chain. The chain
// logs and drops packets whose number belongs to no class.
func (t *tree) node(numbers []int, first, shift int) string {
	digits := strconv.FormatInt(int64(first), 1<<digit)
	known := (numberBits - shift) / digit
	name := t.prefix + strings.Repeat("0", known-len(digits)) + digits + strings.Repeat("x", shift/digit)
	lines := append(t.lines(numbers, shift), t.logs(), "-j DROP")
	t.chains = append(t.chains, chain{family: t.family, table: checks, name: name, lines: lines})
	mask := allBits &^ (1<<shift - 1)
	return "-m mark --mark " + markText(t.bit|uint32(first<<shift), mask) + " -g " + name
}

func (t *tree) logs() string {
	return ruleText(ruleset.Rule{Action: ruleset.Log, To: conf.LogPrefix + t.top}, t.family)
}

func (t *tree) leaf(number int) string {
	mark := "-m mark --mark " + markText(t.bit|uint32(number), allBits)
	r := ruleset.Rule{Comment: t.rules[t.leaves[number]].Comment, Action: ruleset.GoTo, To: t.leaves[number]}
	if r.To == returns { // nearly every packet comes here, and a comment takes the kernel time
		r = ruleset.Rule{Action: ruleset.Return}
	}
	if t.former[number] {
		r.Comment = formerComment
	}
	return mark + " " + ruleText(r, t.family)
}

// lowerAround returns the lines of a chain whose rules lead to dispatch chains. No packet may leave the chain with a
// number in its mark. So the rules lead to dispatch.last instead of a dispatch chain, and dispatch.last clears the
// mark. There is one exception: in a chain with an unconditional jump to a dispatch chain, the jumps still lead to
// dispatch chains, and the last line of the chain clears the mark.
func lowerAround(rules []ruleset.Rule, one func(ruleset.Rule) []string) (lines []string) {
	every := slices.ContainsFunc(rules, func(r ruleset.Rule) bool {
		_, ok := dispatches[r.To]
		return ok && r.SameAs(ruleset.Rule{Action: ruleset.Jump, To: r.To})
	})
	for _, r := range rules {
		if d, ok := dispatches[r.To]; ok && (!every || r.Action == ruleset.GoTo) {
			r.To = d.last
		}
		lines = append(lines, one(r)...)
	}
	if every {
		lines = append(lines, clearMark)
	}
	return lines
}
