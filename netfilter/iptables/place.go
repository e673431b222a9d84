package iptables

import (
	"slices"
	"strings"

	"github.com/weir-net/weir/conf"
)

// refusesAt returns the index at which weir's jump belongs among the rules of a chain: before the first rule that
// refuses every new connection. Many operating systems end filter FORWARD with such a rule. Directly before this rule,
// there may be rules that each refuse all packets of one protocol. Then weir's jump belongs before these rules. If no
// rule refuses every new connection, refusesAt returns the number of rules.
func (t table) refusesAt(rules []string) int {
	for i, l := range rules {
		if !t.refuses(l, 0) {
			continue
		}
		for i > 0 && split(rules[i-1]).refusesProtocol() {
			i--
		}
		return i
	}
	return len(rules)
}

// maxDepth limits the jumps that are followed, because chains may jump in a circle.
const maxDepth = 8

func (t table) refuses(rule string, depth int) bool {
	r := split(rule)
	switch {
	case !r.always() || depth > maxDepth:
		return false
	case r.drops():
		return true
	}
	for _, l := range t.rules[r.target] {
		if t.refuses(l, depth+1) {
			return true
		}
		if !t.idle(l, depth+1) && !split(l).refusesProtocol() {
			return false
		}
	}
	return false
}

// idle reports whether the rule only logs packets, or jumps to a chain whose rules only log packets.
func (t table) idle(rule string, depth int) bool {
	target := split(rule).target
	if depth > maxDepth {
		return false
	}
	rules, chain := t.rules[target]
	works := func(l string) bool { return !t.idle(l, depth+1) }
	return slices.Contains(logs, target) || chain && !slices.ContainsFunc(rules, works)
}

var logs = []string{"LOG", "NFLOG", "ULOG"}

type parts struct {
	conditions []string
	target     string
	goes       bool     // true if the rule has -g instead of -j
	audits     bool     // true if the rule logs what audited policies would drop
	sets       []string // the sets that the rule looks up, except those after "!"
}

func (r parts) own() bool { return conf.OwnChain(r.target) }

func dispatchOf(rules []string) []string {
	var names []string
	for _, l := range rules {
		names = append(names, split(l).sets...)
	}
	return names
}

func (r parts) drops() bool { return r.target == "DROP" || r.target == "REJECT" }

// always reports whether the rule matches at least the first packet of every connection.
func (r parts) always() bool {
	c := r.conditions
	states := len(c) == 4 && (c[2] == "--ctstate" || c[2] == "--state")
	return len(c) == 0 || states && slices.Contains(strings.Split(c[3], ","), "NEW")
}

// refusesProtocol reports whether the rule refuses all packets of one protocol, such as "-p tcp -j REJECT --reject-with
// tcp-reset".
func (r parts) refusesProtocol() bool {
	c := r.conditions
	whole := len(c) == 2 || len(c) == 4 && c[2] == "-m" && c[3] == c[1]
	return r.drops() && whole && c[0] == "-p"
}

func split(rule string) parts {
	var r parts
	for words := words(rule); len(words) > 0; {
		switch {
		case len(words) > 3 && words[0] == "-m" && words[1] == "comment" && words[2] == "--comment":
			words = words[4:]
		case len(words) > 1 && (words[0] == "-j" || words[0] == "-g"):
			r.target, r.goes = words[1], words[0] == "-g"
			r.audits = slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, conf.AuditLogPrefix) })
			return r
		case len(words) > 1 && words[0] == "--match-set":
			if !negated(r.conditions) {
				r.sets = append(r.sets, words[1])
			}
			fallthrough
		default:
			r.conditions, words = append(r.conditions, words[0]), words[1:]
		}
	}
	return r
}

func negated(conditions []string) bool {
	return len(conditions) > 0 && conditions[len(conditions)-1] == "!"
}

func words(rule string) []string {
	all, word, quoted := []string(nil), []byte(nil), false
	for i := 0; i < len(rule); i++ {
		switch c := rule[i]; {
		case c == '\\' && quoted && i+1 < len(rule):
			i++
			word = append(word, rule[i])
		case c == '"':
			quoted = !quoted
		case c == ' ' && !quoted:
			all, word = append(all, string(word)), nil
		default:
			word = append(word, c)
		}
	}
	return append(all, string(word))
}
