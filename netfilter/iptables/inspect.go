package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/netfilter/ipset"
	"github.com/weir-net/weir/policy/ruleset"
)

// detect finds out which iptables the node uses, unless that is known.
func (d *Driver) detect(ctx context.Context) (err error) {
	if d.Flavour == "" {
		d.Flavour, err = Detect(ctx)
	}
	if f := d.Flavour; f != "" && d.detected.Load() == nil {
		d.detected.Store(&f)
	}
	return err
}

// Inspect compares the kernel with the ruleset, as far as that decides about the packets. It reads the rules of the
// table that checks packets, and asks each set only for the packets' own addresses and ports, because a set may have a
// hundred thousand entries. It changes nothing, and may run beside all other methods.
//
// Equivalent to: iptables-save -t mangle; ipset test SET ADDRESS, for each set and address
func (d *Driver) Inspect(
	ctx context.Context, want ruleset.Ruleset, packets []ruleset.Packet,
) (held netfilter.Held, err error) {
	flavour := d.detected.Load()
	if flavour == nil {
		return held, errors.New("the agent doesn't know yet which iptables the node uses")
	}
	sets, err := ipset.New()
	if err != nil {
		return held, err
	}
	own := &Driver{Flavour: *flavour, sets: sets}
	defer own.Close()
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	lowered := lower(want)
	for _, f := range conf.Families {
		if slices.ContainsFunc(packets, func(p ruleset.Packet) bool { return conf.FamilyOf(p.Dst) == f }) {
			wrong, err := own.wrongRules(ctx, f, lowered)
			if err != nil {
				held.Unread = err.Error()
			}
			held.Wrong = append(held.Wrong, wrong...)
		}
	}
	var missing map[string]bool
	held.Ruleset, missing, err = heldBy(want, packets)
	for _, s := range want.Sets {
		if missing[s.Name] {
			held.Wrong = append(held.Wrong, fmt.Sprintf("the set %s is missing", s.Name))
		}
	}
	return held, err
}

// wrongRules says which chains of the family differ from the ruleset. It returns an error if the table can't be read.
func (d *Driver) wrongRules(ctx context.Context, f conf.Family, want *lowered) (wrong []string, err error) {
	d.wanted[f] = want.has(f)
	t := d.readText(ctx, f, checks, nil)
	if t.unknown != nil {
		return nil, t.unknown.why
	}
	if t.dormant {
		wrong = append(wrong, fmt.Sprintf("the table %s of %s is switched off", checks, d.Flavour.program(f)))
	}
	for _, c := range want.chains {
		if c.family != f || c.table != checks || t.is(c.name, c.lines) {
			continue
		}
		how := "has other rules than the policies need"
		if _, exists := t.rules[c.name]; !exists {
			how = "is missing"
		}
		wrong = append(wrong, fmt.Sprintf("the chain %s of %s %s", c.name, d.Flavour.program(f), how))
	}
	if len(jumps(f, checks, t, want)) > 0 || len(t.misplaced) > 0 {
		wrong = append(wrong, fmt.Sprintf("packets of %s don't come to weir's chains first", f))
	}
	return wrong, nil
}

// heldBy returns the ruleset with those entries of its sets that the kernel holds and that a packet has, and the sets
// that the kernel doesn't have.
func heldBy(want ruleset.Ruleset, packets []ruleset.Packet) (ruleset.Ruleset, map[string]bool, error) {
	var questions []ipset.Question
	entries := make([][]ruleset.Entry, len(want.Sets))
	at := []int{} // for each question: the index of its set
	for i, s := range want.Sets {
		for _, e := range elements(s, packets) {
			questions = append(questions, ipset.Question{Set: s.Name, Entry: entry(ruleset.Entry{Element: e})})
			at = append(at, i)
		}
	}
	holds, missing, err := ipset.Holds(questions)
	if err != nil {
		return ruleset.Ruleset{}, nil, err
	}
	for q, yes := range holds {
		if yes {
			entries[at[q]] = append(entries[at[q]], ruleset.Entry{Element: element(questions[q].Entry)})
		}
	}
	held := want
	held.Sets = slices.Clone(want.Sets)
	for i := range held.Sets {
		held.Sets[i].Entries = ruleset.EntriesOf(entries[i]...)
	}
	return held, missing, nil
}

// elements returns the elements that a rule could look up in the set for one of the packets.
func elements(s ruleset.Set, packets []ruleset.Packet) (all []ruleset.Element) {
	add := func(e ruleset.Element) {
		if !slices.Contains(all, e) {
			all = append(all, e)
		}
	}
	for _, p := range packets {
		if s.Kind == ruleset.Ports {
			if p.Port != 0 {
				add(ruleset.Element{Port: p.Port})
			}
			continue
		}
		if conf.FamilyOf(p.Dst) != s.Family {
			continue
		}
		for _, a := range []netip.Addr{p.Src, p.Dst} {
			e := ruleset.Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
			switch s.Kind {
			case ruleset.AddressLinks:
				if e.Link = p.In; a == p.Src && e.Link != "" {
					add(e)
				}
			case ruleset.AddressPorts:
				if e.Proto, e.Port = p.Proto, p.Port; p.Port != 0 {
					add(e)
				}
			default:
				add(e)
			}
		}
	}
	return all
}
