package iptables

import (
	"net/netip"

	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

// settle remembers the ruleset of a successful Apply for applyEntries.
func (d *Driver) settle(r ruleset.Ruleset, result netfilter.Result, err error) {
	d.settled, d.left = nil, result.Left
	if err == nil {
		d.settled = &r
	}
}

// applyEntries is a quick Apply for the most frequent change: only entries of peers' sets differ from the last ruleset.
// If anything else differs, it does nothing, and done is false.
func (d *Driver) applyEntries(r ruleset.Ruleset) (result netfilter.Result, done bool, err error) {
	changed, ok := d.changedEntries(r)
	if !ok {
		return result, false, nil
	}
	want := &lowered{sets: changed, whole: map[string]bool{}}
	var dels, adds []change
	for i, s := range changed {
		lowered := d.lowering.set(s)
		changed[i].Entries, want.whole[s.Name] = lowered.to, lowered.whole
		a, b := diff(d.have.sets[s.Name], changed[i])
		adds, dels = append(adds, a...), append(dels, b...)
	}
	last, refused := d.settled, ruleset.Refused{}
	have := d.have
	d.have, d.settled = nil, nil // the state is unknown until all changes are made
	// Deletions come before additions. Otherwise a packet could pass that both the old and the new state drop.
	for _, changes := range [][]change{dels, adds} {
		if err := changeSets(changes, want, refused); err != nil {
			return result, true, err
		}
	}
	for _, s := range changed {
		had := have.sets[s.Name]
		had.entries = s.Entries
		for e := range refused {
			if e.Set == s.Name {
				had.entries = had.entries.Without(e.Element)
			}
		}
		have.sets[s.Name] = had
	}
	d.have, d.fresh = have, false
	result = netfilter.Result{Changed: len(dels)+len(adds)-len(refused) > 0, Closes: len(dels) > 0, Left: d.left}
	if len(adds) == 0 {
		result.Closed = addressesOf(dels)
	}
	if len(refused) > 0 {
		return result, true, &netfilter.RefusedError{Refused: want.raise(refused)}
	}
	*last = r
	d.settled = last
	return result, true, nil
}

func addressesOf(changes []change) (all []netip.Addr) {
	for _, c := range changes {
		if !c.Prefix.IsValid() || !c.Prefix.IsSingleIP() {
			return nil
		}
		all = append(all, c.Prefix.Addr())
	}
	return all
}

func (d *Driver) changedEntries(r ruleset.Ruleset) (changed []ruleset.Set, ok bool) {
	if d.settled == nil || d.have == nil {
		return nil, false
	}
	changed, ok = r.ChangedPeers(*d.settled)
	// If no entry has changed and unneeded sets are left, a whole Apply is better, because it destroys these sets.
	return changed, ok && (len(changed) > 0 || len(d.left) == 0)
}
