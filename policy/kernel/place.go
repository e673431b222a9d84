package kernel

import (
	"slices"
	"strings"
)

// refusesAt is the number of rules ahead of the first one that refuses every packet: DROP or REJECT without
// conditions, or a jump to a chain that does no more than that. Many images end filter FORWARD so, and leave its
// policy at ACCEPT. What stands ahead of such a rule says what its author wants to refuse or accept in particular,
// and goes on holding for pods.
func (t table) refusesAt(rules []string) int {
	for i, l := range rules {
		if t.refuses(l, 0) {
			return i
		}
	}
	return len(rules)
}

// maxDepth is how many jumps refuses follows. The kernel allows no loops; a text may have them.
const maxDepth = 8

func (t table) refuses(rule string, depth int) bool {
	verb, target, ok := unconditional(rule)
	switch {
	case !ok || depth > maxDepth:
		return false
	case verb == "-j" && (target == "DROP" || target == "REJECT"):
		return true
	}
	for _, l := range t.rules[target] {
		if t.refuses(l, depth+1) {
			return true
		}
		if !t.idle(l, depth+1) {
			return false
		}
	}
	return false
}

// idle says of a rule that it does nothing with packets but tell of them: it logs, or jumps to a chain without more
// than that.
func (t table) idle(rule string, depth int) bool {
	_, target, ok := unconditional(rule)
	if !ok || depth > maxDepth {
		return false
	}
	rules, chain := t.rules[target]
	works := func(l string) bool { return !t.idle(l, depth+1) }
	return slices.Contains(logs, target) || chain && !slices.ContainsFunc(rules, works)
}

// logs are the targets that only tell of a packet.
var logs = []string{"LOG", "NFLOG", "ULOG"}

// unconditional returns the target of a rule that holds for every packet, and the verb before it: -j or -g. A
// comment is no condition. It reads rules as iptables-save prints them.
func unconditional(rule string) (verb, target string, ok bool) {
	if rest, has := strings.CutPrefix(rule, "-m comment --comment "); has {
		if quoted, has := strings.CutPrefix(rest, `"`); has {
			rule = strings.ReplaceAll(quoted, `\"`, "")
			_, rule, _ = strings.Cut(rule, `"`)
		} else {
			_, rule, _ = strings.Cut(rest, " ")
		}
		rule = strings.TrimPrefix(rule, " ")
	}
	verb, rest, _ := strings.Cut(rule, " ")
	target, _, _ = strings.Cut(rest, " ")
	return verb, target, verb == "-j" || verb == "-g"
}
