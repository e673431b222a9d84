package iptables

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
)

// destroySlice bounds the time in which one Apply destroys sets, unless more would be left than mostLeft allows.
const destroySlice = 20 * time.Millisecond

// mostLeft is how many sets and entries an Apply leaves at most. While policies change all the time, no Apply has
// nothing else to do. The kernel has room for a limited number of sets (see maxNodeSets in package policy), and an
// entry takes some 200 bytes. Tests make it smaller.
var mostLeft = struct{ sets, entries int }{1 << 12, 1 << 18}

// destroy destroys sets of have until all are gone, or destroySlice is over and no more are left than mostLeft allows.
// It returns the sets that are left. If busy is true, because something else was to do, it destroys only what mostLeft
// doesn't allow. No rule uses the sets, so they can wait: some kernels take milliseconds for each, and an ADD or a
// change of policy would wait meanwhile.
func (d *Driver) destroy(names []string, have state, busy bool) (left []string, err error) {
	began, sets, entries := time.Now(), len(names), 0
	for _, name := range names {
		entries += have.sets[name].entries.Len()
	}
	for i, name := range names {
		if (busy || time.Since(began) > destroySlice) && sets <= mostLeft.sets && entries <= mostLeft.entries {
			return append(left, names[i:]...), nil
		}
		err := d.sets.Destroy(name)
		// nf_tables frees a deleted rule some time after the transaction is over. Until then the rule still uses the
		// set.
		if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
			left = append(left, name)
			continue
		}
		if err != nil {
			return nil, err
		}
		sets, entries = sets-1, entries-have.sets[name].entries.Len()
	}
	return left, nil
}

// destroyForeign destroys a set that has the name of a set of weir's, but another type or family: another program has
// made it. The kernel refuses that while a rule uses the set, so no packet is treated differently afterwards.
//
// Equivalent to: ipset destroy NAME
func (d *Driver) destroyForeign(name string) error {
	err := d.sets.Destroy(name)
	if errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)) {
		return fmt.Errorf("a rule of another program uses ipset %s, which another program has made under a name of weir's: "+
			"delete the rule (iptables-save | grep %s), then the agent replaces the set", name, name)
	}
	return err
}
