package ruleset

import "github.com/weir-net/weir/conf"

// Step is a rule that a packet has matched in a chain.
type Step struct {
	Chain string
	Rule  Rule
}

// Trace runs the packet through the ruleset like a Simulator. It returns whether the packet passes, and the matching
// rules in order.
func (r Ruleset) Trace(p Packet) (passes bool, steps []Step, err error) {
	s, err := NewSimulator(r)
	if err != nil {
		return false, nil, err
	}
	hook := CheckForwarded
	if p.Out == "" {
		hook = CheckToNode
	}
	t := tracer{s, r, p, nil}
	for _, c := range r.Chains {
		if c.Hook == hook && c.Family == conf.FamilyOf(p.Dst) {
			passes = t.walk(c) != Drop
			return passes, t.steps, nil
		}
	}
	return true, nil, nil
}

type tracer struct {
	*Simulator
	Ruleset
	packet Packet
	steps  []Step
}

func (t *tracer) walk(c Chain) Action {
	for _, r := range c.Rules {
		if !t.matches(r, t.packet) {
			continue
		}
		t.steps = append(t.steps, Step{c.Name, r})
		switch r.Action {
		case Drop, Return:
			return r.Action
		case Jump, GoTo:
			next, _ := t.Chain(c.Family, r.To) // a chain that doesn't exist has no rules
			if result := t.walk(next); result == Drop || r.Action == GoTo {
				return result
			}
		}
	}
	return Return
}
