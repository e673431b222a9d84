// Package podcheck checks a cluster's network with real pods: connections to pods, Services, names and the world, and
// policies.
//
// Invariants:
//   - The check makes objects only in a namespace of its own, and removes the namespace also after an error. If the
//     removal fails, the error names the namespace. The pods end by themselves.
//   - The check removes the namespace of another check only if that check gives no sign of life there (Times.Alive).
//   - A connection counts as denied only if no answer comes. Policies don't cause any other failure.
package podcheck

import (
	"fmt"
	"slices"
	"strings"
)

type Name string

// The checks, in the order of the report. A fault that breaks one check often breaks later checks.
const (
	Nodes      Name = "nodes"
	Start      Name = "pods start"
	SameNode   Name = "same node"
	Across     Name = "across nodes"
	Large      Name = "large packets"
	Service    Name = "service"
	DNS        Name = "dns"
	NodePort   Name = "node port"
	World      Name = "world"
	Deny       Name = "deny ingress"
	Allow      Name = "allow ingress"
	Reopen     Name = "policies deleted"
	DenyEgress Name = "deny egress"
	CleanUp    Name = "clean up"
)

type State string

const (
	OK      State = "ok"
	Broken  State = "BROKEN"
	Skipped State = "skipped"
)

// Line is one line of the report: the result of one check.
type Line struct {
	Check  Name   `json:"check"`
	State  State  `json:"state"`
	Detail string `json:"detail"`
}

type Report struct {
	Namespace string   `json:"namespace"`
	Nodes     []string `json:"nodes"`
	Lines     []Line   `json:"checks"`
}

// Broken returns a line about the first broken check, with the number of further broken checks. If no check is broken,
// it returns "".
func (r *Report) Broken() string {
	more := 0
	first := ""
	for _, l := range r.Lines {
		switch {
		case l.State != Broken:
		case first == "":
			first = fmt.Sprintf("%s: %s", l.Check, l.Detail)
		default:
			more++
		}
	}
	if more > 0 {
		first += fmt.Sprintf(" (further broken checks: %d)", more)
	}
	return first
}

type Outcome struct {
	// From is the client's node. To is the server's node, or the node whose nodePort is tried. To is empty if the
	// attempt is to a Service's address, a name or the world.
	From, To string
	Family   string
	OK       bool
	// Why says what happened if OK is false.
	Why string
}

func lineOf(check Name, outcomes []Outcome, hint string) Line {
	var failed []Outcome
	for _, o := range outcomes {
		if !o.OK {
			failed = append(failed, o)
		}
	}
	if len(outcomes) == 0 {
		return Line{check, Skipped, "a check that this one needs has failed, or there is only one node"}
	}
	if len(failed) == 0 {
		return Line{check, OK, counted(outcomes)}
	}
	detail := where(outcomes, failed) + ": " + reasons(failed)
	if hint != "" {
		detail += "; " + hint
	}
	return Line{check, Broken, detail}
}

func counted(outcomes []Outcome) string {
	families := familiesOf(outcomes)
	words := fmt.Sprintf("%d attempts", len(outcomes))
	if len(outcomes) == 1 {
		words = "1 attempt"
	}
	if families == "" {
		return words
	}
	return words + ", " + families
}

func familiesOf(outcomes []Outcome) string {
	var all []string
	for _, o := range outcomes {
		if o.Family != "" && !slices.Contains(all, o.Family) {
			all = append(all, o.Family)
		}
	}
	slices.Sort(all)
	return strings.Join(all, " and ")
}

const maxReasons = 2

func reasons(failed []Outcome) string {
	count := map[string]int{}
	var all []string
	for _, o := range failed {
		if count[o.Why]++; count[o.Why] == 1 {
			all = append(all, o.Why)
		}
	}
	slices.SortStableFunc(all, func(a, b string) int { return count[b] - count[a] })
	if more := len(all) - maxReasons; more > 0 {
		all = append(all[:maxReasons], fmt.Sprintf("%d other reasons", more))
	}
	return strings.Join(all, ", ")
}

const maxPairs = 3

func where(outcomes, failed []Outcome) string {
	prefix := ""
	if some := familiesOf(failed); some != "" && some != familiesOf(outcomes) && !strings.Contains(some, " and ") {
		prefix = some + " "
		outcomes = slices.DeleteFunc(slices.Clone(outcomes), func(o Outcome) bool { return o.Family != some })
	}
	within := func(o Outcome) bool { return o.From == o.To }
	if !slices.ContainsFunc(failed, within) { // connections within a node show nothing about packets between nodes
		outcomes = slices.DeleteFunc(slices.Clone(outcomes), within)
	}
	if len(failed) == len(outcomes) {
		if nodes := namesOf(failed); len(nodes) == 1 {
			return prefix + "on " + nodes[0]
		}
		return prefix + "everywhere"
	}
	for _, part := range []struct {
		words  string
		single bool // true if the words are about one direction
		in     func(o Outcome, node string) bool
	}{
		{"from and to %s", false, func(o Outcome, node string) bool { return o.From == node || o.To == node }},
		{"to %s", true, func(o Outcome, node string) bool { return o.To == node }},
		{"from %s", true, func(o Outcome, node string) bool { return o.From == node }},
	} {
		for _, node := range namesOf(failed) {
			mine := 0 // counts the attempts from or to this node, as the words say
			for _, o := range outcomes {
				if part.in(o, node) {
					mine++
				}
			}
			its := !slices.ContainsFunc(failed, func(o Outcome) bool { return !part.in(o, node) })
			both := slices.ContainsFunc(failed, func(o Outcome) bool { return o.To == node }) &&
				slices.ContainsFunc(failed, func(o Outcome) bool { return o.From == node })
			if its && mine == len(failed) && (both || part.single) {
				return prefix + fmt.Sprintf(part.words, node)
			}
		}
	}
	var pairs []string
	for _, o := range failed {
		pair := "from " + o.From
		if o.To != "" {
			pair += " to " + o.To
		}
		if !slices.Contains(pairs, pair) {
			pairs = append(pairs, pair)
		}
	}
	if more := len(pairs) - maxPairs; more > 0 {
		pairs = append(pairs[:maxPairs], fmt.Sprintf("%d more", more))
	}
	return prefix + strings.Join(pairs, ", ")
}

func namesOf(outcomes []Outcome) (all []string) {
	for _, o := range outcomes {
		for _, n := range []string{o.From, o.To} {
			if n != "" && !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
	}
	slices.Sort(all)
	return all
}
