package nftables

import (
	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/netfilter"
	"github.com/weir-net/weir/policy/ruleset"
)

// applyEntries is a quick Apply for the most frequent change: only entries of peers' sets differ from the last ruleset.
// If anything else differs, or if the kernel refuses the change, done is false, and the caller must apply the whole
// ruleset. In this case, the result covers the transactions that the kernel has made.
func (d *Driver) applyEntries(r ruleset.Ruleset) (result netfilter.Result, done bool) {
	want, ok := d.changedEntries(r)
	if !ok {
		return result, false
	}
	d.settled = nil // unknown until the change is made
	result, _, err := d.apply(want, false)
	if err != nil {
		return result, false
	}
	d.settled, result.Notes = &r, d.notes()
	return result, true
}

// changedEntries returns tables with only those sets that must change. ok is false if applyEntries can't make the
// change.
func (d *Driver) changedEntries(r ruleset.Ruleset) (want lowered, ok bool) {
	if d.settled == nil || d.have == nil || d.fresh {
		return want, false
	}
	changed, ok := r.ChangedPeers(*d.settled)
	if !ok || len(changed) == 0 {
		return want, false
	}
	for _, f := range conf.Families {
		if k := d.have[f]; k.exists {
			if want[f] = (&table{family: f, partial: true}); k.off || len(k.misplaced) > 0 || k.isOdd() {
				return want, false
			}
		}
	}
	for _, s := range changed {
		if s.Kind == ruleset.Ports || want[s.Family] == nil {
			return want, false
		}
		lowered := d.lowering.set(d.lowering, s.Family, s)
		if had, ok := d.have[s.Family].sets[s.Name]; !ok || had.unknown || had.layout != lowered.Layout {
			return want, false
		}
		want[s.Family].sets = append(want[s.Family].sets, lowered)
	}
	return want, true
}
